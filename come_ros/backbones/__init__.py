"""Visual geometry models: `load_backbone` builds the one selected by the configuration."""

from __future__ import annotations

import logging
import os

from ..config import Config
from ..errors import ConfigError
from ..plugins import BACKBONES, check_complete, is_network
from ..threads import taken_since_start, threads_at_start, usable_threads
from .backbone import Backbone

__all__ = ["Backbone", "load_backbone", "reproducible"]

log = logging.getLogger("come_ros")


def load_backbone(config: Config) -> Backbone:
    """Builds the model, reads its weights and moves it to its device. Slow: torch is imported here, not earlier.

    Raises CheckpointError (weights missing or wrong) or ConfigError (device or precision is not available, a plug-in cannot be used).
    """
    if not is_network(config.backbone):
        made: Backbone = BACKBONES.create(config.backbone, config)
        check_complete(made, Backbone, f"the backbone {config.backbone}")
        if config.accelerator.name != "none" and type(made).configured is Backbone.configured:
            raise ConfigError(
                f"accelerator.name is {config.accelerator.name}, but the backbone {config.backbone} has no accelerators: set it to none"
            )
        _check_inputs(config, made.inputs)
        return made

    import torch

    from ..accelerators import make_accelerator
    from .checkpoint import bundled_weights, load_model
    from .torch_backbone import TorchBackbone

    threads = config.threads or _threads_at_start()
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    path = config.weights or bundled_weights(config.backbone)
    model = load_model(config.backbone, path)
    _check_inputs(config, model.inputs)
    return TorchBackbone(
        config.backbone,
        model,
        make_accelerator(config, model.shape, path),
        device=config.device,
        precision=config.precision,
        weights=path,
        attention=config.attention,
        heads_precision=config.heads_precision,
        optimize=config.optimize,
        stream=config.stream,
    )


def reproducible(config: Config) -> None:
    """From now on the network of that configuration gives the same bits every time: sums in a fixed order. Call it before the model is
    loaded; the number of threads is fixed where that is done."""
    if not is_network(config.backbone):
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    # some GPU operations have no deterministic implementation
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def _threads_at_start() -> int:
    most, taken = usable_threads(), taken_since_start()
    threads = threads_at_start(most, taken)
    if threads < most:
        log.warning(
            "other processes use %.1f cores: the model starts with %d of %d threads; set threads to %d to repeat this run bit by bit",
            taken, threads, most, threads,
        )  # fmt: skip
    return threads


def _check_inputs(config: Config, inputs: frozenset[str]) -> None:
    """Raises ConfigError if an input is enabled that neither the model nor the scale accepts."""
    for parameter, name, source in (("known.depth", "depth", "depth"), ("known.odometry", "poses", "odometry")):
        if config.get(parameter) and name not in inputs and source not in config.scale_sources:
            raise ConfigError(
                f"{parameter} is true, but the backbone {config.backbone} takes no {name}: set it to false, or backbone to mapanything, or "
                f"scale.mode to auto or {source} to measure metres with it"
            )
