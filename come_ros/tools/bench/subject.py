"""The subject of a benchmark: a model, its accelerators and the images."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...bundled import VARIANT
from ...config import Config
from ...config_text import with_accelerator
from ...errors import ConfigError, DatasetError
from ...plugins import BACKBONES
from ...types import U8

DENSE = "none"
HOW = ("attention", "heads_precision", "optimize")  # parameters of the configuration: how the device does it
SEED = 0


@dataclass(frozen=True)
class Wish:
    """The model and how it runs. weights: file, "" for the bundled one. random: this variant with random weights instead, ""
    for none. predictor: file of the accelerators, "" for the bundled one."""

    backbone: str = "vggt"
    weights: str = ""
    random: str = ""
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0
    predictor: str = ""
    attention: str = "auto"
    heads_precision: str = "fp32"
    optimize: str = "none"

    def config(self, accelerator: str = DENSE) -> Config:
        """accelerator: NAME or NAME:parameter=value,..., with parameters of the group `accelerator` or of the top. Raises ConfigError."""
        base = Config().replace(
            backbone=self.backbone,
            weights=self.weights,
            device=self.device,
            precision=self.precision,
            threads=self.threads,
            **{"accelerator.predictor": self.predictor},
            **{name: getattr(self, name) for name in HOW},
        )
        return with_accelerator(base, accelerator)

    def load(self) -> Any:
        """The TorchBackbone, dense. Raises CheckpointError or ConfigError."""
        from ...backbones import load_backbone

        if not self.random:
            return load_backbone(self.config())
        import torch

        from ...accelerators import Accelerator
        from ...backbones.checkpoint import variants
        from ...backbones.device import choose_device, choose_precision
        from ...backbones.torch_backbone import TorchBackbone

        if self.threads:
            torch.set_num_threads(self.threads)
        device = choose_device(self.device)
        choose_precision(self.precision, device)  # a wrong one is refused before a large model is built
        with torch.device("meta"):
            model = BACKBONES.load(self.backbone)(variants(self.backbone)[self.random])
        model.to_empty(device=device)
        generator = torch.Generator(device).manual_seed(SEED)
        with torch.no_grad():
            for name, parameter in model.named_parameters():  # so that activations neither vanish nor explode
                if parameter.ndim > 1:
                    parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
                else:
                    parameter.fill_(0.1 if name.endswith("gamma") else float(name.endswith("weight")))
            for buffer in model.buffers():
                buffer.zero_()
        how = {name: getattr(self, name) for name in ("device", "precision", *HOW)}
        how["weights"] = f"random {self.random}"
        return TorchBackbone(self.backbone, model, Accelerator(), **how)

    def with_accelerator(self, backbone: Any, accelerator: str) -> Any:
        """`backbone`, accelerated. Raises ConfigError or CheckpointError."""
        import torch

        from ...accelerators import make_accelerator

        config = self.config(accelerator)
        made = make_accelerator(config, backbone.model.shape, backbone.description["weights"])
        return backbone.accelerated(made.to(torch.device(backbone.device)))


def check_counts(options: argparse.Namespace) -> None:
    """Raises ConfigError if a number on the command line is out of range."""
    for name, least in (("frames", 1), ("warm_up", 0), ("threads", 0), ("limit", 0)):
        values = getattr(options, name)
        if values is not None and min(np.atleast_1d(values)) < least:
            raise ConfigError(f"--{name.replace('_', '-')} is {values}, but must be {least} or more")


def median_p90(values: Any) -> dict[str, float]:
    return {"median": float(np.median(values)), "p90": float(np.percentile(values, 90))}


def wish_of(options: argparse.Namespace) -> Wish:
    """Raises ConfigError if the options contradict one another."""
    from ...backbones.checkpoint import variants

    how = {name: getattr(options, name) for name in ("device", "precision", "threads", *HOW) if hasattr(options, name)}
    wish = Wish(options.backbone, options.weights, **how)
    if not options.random_weights:
        if options.variant:
            raise ConfigError(
                f"--variant {options.variant} chooses among random weights, weights files hold their own sizes: add --random-weights, or "
                f"name a file of that size with --weights instead"
            )
        return wish
    known = variants(options.backbone)
    small = next((name for name in (VARIANT, "tiny") if name in known), next(iter(known)))
    variant = options.variant or small
    if options.weights:
        raise ConfigError(f"--weights {options.weights} and --random-weights: give only one of them")
    if variant not in known:
        raise ConfigError(f"--variant is {variant!r}, but {options.backbone} has {', '.join(known)}")
    return dataclasses.replace(wish, random=variant)


def random_predictor(folder: Path, model: Any) -> str:
    """A file with a predictor that fits the model."""
    import torch

    from ...accelerators.confidence import ConfidencePredictor, default_block, save_predictor

    torch.manual_seed(SEED)
    path, width = str(folder / "predictor.safetensors"), model.shape.encoder_width
    predictor = ConfidencePredictor(width, 32 if width < 512 else 128)  # as they come
    save_predictor(path, predictor, default_block(len(model.encoder_blocks())))
    return path


def image_size(text: str | None, backbone: Any) -> tuple[int, int]:
    """(width, height) of WxH, or of one number for a square; whole patches. Raises ConfigError."""
    patch = backbone.patch_size
    if text is None:
        side = backbone.native_side
        return side, patch * round(0.75 * side / patch)
    sides = text.lower().split("x")
    if len(sides) in (1, 2) and all(s.isdigit() for s in sides):
        width, height = int(sides[0]), int(sides[-1])
        if min(width, height) >= 2 * patch and width % patch == height % patch == 0:
            return width, height
    raise ConfigError(
        f"--size is {text!r}, but must be WIDTHxHEIGHT in px, both multiples of {patch} from {2 * patch} on, "
        f"such as {36 * patch}x{27 * patch}"
    )


def load_images(source: str | None, frames: int, width: int, height: int) -> U8:
    """(frames, height, width, 3) of a recording, or of a rendered room. Raises DatasetError."""
    import cv2

    if source is None:
        from ...datasets.rooms.rooms import render_sequence
        from ...datasets.rooms.splits import SPLIT_SEEDS, TEST_RATE_HZ

        return render_sequence(SPLIT_SEEDS["test"][0], frames, width, height, TEST_RATE_HZ).images
    from ...datasets.sequence import open_sequence

    found: list[U8] = []
    with open_sequence(source) as sequence:
        for frame in sequence.iter_frames():
            found.append(cv2.resize(frame.image, (width, height), interpolation=cv2.INTER_AREA))  # type: ignore[arg-type]
            if len(found) == frames:
                return np.stack(found)
    raise DatasetError(
        f"{source} has {len(found)} images, but --frames asks for {frames}: give a longer one, or fewer frames"
    )
