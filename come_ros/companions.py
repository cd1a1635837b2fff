"""Files that belong to one set of weights: what they are called, and where they lie unless a parameter names them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .errors import CheckpointError


@dataclass(frozen=True)
class Companion:
    """One kind of such files. what: in words. pattern: of its name; {} is NAME of the weights file NAME.safetensors, next to which it
    lies. command: of come_ros, which makes it, but for the weights. parameter: names one that lies elsewhere."""

    what: str
    pattern: str
    command: str
    parameter: str

    def next_to(self, weights: str) -> str:
        """Where the one of the file `weights` lies, whether it is there or not."""
        folder, name = os.path.split(weights)
        return os.path.join(folder, self.pattern.format(os.path.splitext(name)[0]))

    def made(self, weights: str) -> str:
        """The command that makes one for the file `weights`."""
        return f"`come_ros {self.command} --weights {weights or 'FILE'}`"

    def of(self, weights: str, named: str = "") -> str:
        """The file to read for the file `weights`: `named`, the parameter's value, or if that is empty the one next to the weights.
        Raises CheckpointError if it is not there."""
        path = named or self.next_to(weights)
        if not os.path.isfile(path):
            raise CheckpointError(
                f"there is no {self.what} {path} for {weights or 'this model'}: make it with {self.made(weights)}, and name the "
                f"file with {self.parameter}, or set accelerator.name to none"
            )
        return path


PREDICTOR = Companion("confidence predictor", "come_{}.safetensors", "distill -o FOLDER", "accelerator.predictor")
NETWORKS = Companion(
    "scorer and restorer of PaceVGGT", "pace_{}.safetensors", "train-pace -o FOLDER", "accelerator.pace"
)
LAYER_PLAN = Companion("layer plan", "{}.attention.json", "calibrate", "accelerator.layer_plan")
COMPANIONS = (PREDICTOR, NETWORKS, LAYER_PLAN)
