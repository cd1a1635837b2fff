"""Files that belong to one set of weights: what they are called, where they lie unless a parameter names them, and whether they were
made for the weights that are loaded. They fit all weights of the same sizes, so nothing else would tell."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import CheckpointError

log = logging.getLogger("come_ros")

WEIGHTS, FINGERPRINT = "weights", "weights_fingerprint"
"""what such a file says of its weights, in its metadata: name of their file, and weights.fingerprint_of_tensors"""
OF_ENDS = "fingerprint"
"""in place of the latter in layer plans of earlier versions: of size and ends of the weights file"""


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

    def misfit(self, path: str, about: Mapping[str, Any], weights: str) -> str:
        """Why the file `path` is not of the weights file, with the way out; "" if it is, or does not say. about: its metadata."""
        key = next((key for key in (FINGERPRINT, OF_ENDS) if about.get(key)), None)
        if key is None or not os.path.isfile(weights):
            return ""
        ours = _fingerprint(weights) if key == FINGERPRINT else _fingerprint_of_ends(weights)
        if about[key] == ours:
            return ""
        return (
            f"{path} was made for other weights, {about.get(WEIGHTS, 'without a name')} (fingerprint {about[key]}), than those that are "
            f"loaded, {weights} (fingerprint {ours}): make one for these with {self.made(weights)}, and name it with {self.parameter}"
        )

    def fits(
        self, path: str, about: Mapping[str, Any], weights: str, meanwhile: str = "until then it is used as it is"
    ) -> bool:
        """Whether `misfit` finds nothing; what it finds is logged, once. meanwhile: what happens then."""
        told = self.misfit(path, about, weights)
        if told:
            _warn(f"{told}; {meanwhile}")
        return not told


@functools.cache
def _warn(text: str) -> None:
    log.warning("%s", text)


def made_for(weights: str) -> dict[str, str]:
    """What a file of these kinds says of the weights file that it is made for. Raises CheckpointError."""
    return {WEIGHTS: os.path.basename(weights), FINGERPRINT: _fingerprint(weights)}


def said_by(path: str) -> dict[str, Any]:
    """The metadata of a file of these kinds. Raises CheckpointError."""
    if not path.endswith(".json"):
        from .weights import read_checkpoint

        return dict(read_checkpoint(path)[1])
    try:
        with open(path, encoding="utf-8") as stream:
            return dict(json.load(stream))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path} ({error!r}): make it again") from error


def _fingerprint(weights: str) -> str:
    from .weights import fingerprint_of_tensors  # which needs torch

    return fingerprint_of_tensors(weights)


def _fingerprint_of_ends(weights: str) -> str:
    size = os.path.getsize(weights)
    digest = hashlib.sha256(str(size).encode())
    with open(weights, "rb") as file:
        digest.update(file.read(2**20))
        file.seek(-min(2**20, size), os.SEEK_END)
        digest.update(file.read())
    return digest.hexdigest()[:16]


PREDICTOR = Companion("confidence predictor", "come_{}.safetensors", "distill -o FOLDER", "accelerator.predictor")
NETWORKS = Companion(
    "scorer and restorer of PaceVGGT", "pace_{}.safetensors", "train-pace -o FOLDER", "accelerator.pace"
)
LAYER_PLAN = Companion("layer plan", "{}.attention.json", "calibrate --overwrite", "accelerator.layer_plan")
COMPANIONS = (PREDICTOR, NETWORKS, LAYER_PLAN)
