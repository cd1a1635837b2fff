"""Visual geometry models: `load_backbone` builds the one that the configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import Config

if TYPE_CHECKING:
    from .base import Backbone

__all__ = ["load_backbone"]


def load_backbone(config: Config) -> Backbone:
    """Build the model, read its weights, put it on its device. Slow; torch is imported here, not before.

    Raises CheckpointError (weights missing or wrong) or ConfigError (device or precision cannot be had).
    """
    if config.backbone == "fake":
        from .fake import FakeBackbone

        return FakeBackbone()

    import torch

    from ..accelerators import make_accelerator
    from .base import TorchBackbone
    from .checkpoint import bundled_weights, load_model

    if config.threads:
        torch.set_num_threads(config.threads)
    path = config.weights or bundled_weights(config.backbone)
    model = load_model(config.backbone, path)
    return TorchBackbone(
        config.backbone,
        model,
        make_accelerator(config, model, path),
        device=config.device,
        precision=config.precision,
        weights=path,
    )
