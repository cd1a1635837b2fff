"""Weights files: read without executing code, and loaded strictly into a module."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CheckpointError


def fill(model: nn.Module, state: dict[str, Tensor], path: str) -> None:
    """Loads `state` into `model` strictly: every key, every shape. Raises CheckpointError."""
    want = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    got = {k: tuple(v.shape) for k, v in state.items()}
    problems = []
    for title, keys in (
        ("missing", sorted(want.keys() - got.keys())),
        ("unexpected", sorted(got.keys() - want.keys())),
    ):
        if keys:
            problems.append(f"{len(keys)} {title}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}")
    wrong = [f"{k} {got[k]} instead of {want[k]}" for k in sorted(want.keys() & got.keys()) if got[k] != want[k]]
    if wrong:
        problems.append(f"{len(wrong)} of another shape: {'; '.join(wrong[:3])}{'; ...' if len(wrong) > 3 else ''}")
    if problems:
        raise CheckpointError(
            f"{path} does not fit this model ({len(want)} tensors wanted, {len(got)} found). {'. '.join(problems)}. "
            f"Give the weights file of the backbone you asked for, or leave weights empty for the bundled model"
        )
    model.load_state_dict({k: v.float() for k, v in state.items()}, strict=True, assign=True)


def read_checkpoint(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a .safetensors file, or of a .pt/.pth file read with weights_only. Raises CheckpointError."""
    if not os.path.isfile(path):
        raise CheckpointError(
            f"weights file {path} does not exist: check the path, or leave it out for the bundled model"
        )
    try:
        if path.endswith(".safetensors"):
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        if path.endswith((".pt", ".pth")):
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(loaded, dict) and {"model", "optimiser"} <= loaded.keys():
                raise CheckpointError(
                    f"{path} is a training checkpoint: write its weights first, with `come_ros train -o {os.path.dirname(path) or '.'} "
                    f"--export FILE.safetensors`"
                )
            for key in ("model", "state_dict"):
                if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
                    loaded = loaded[key]
            if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
                raise CheckpointError(f"{path} holds no dictionary of tensors: give the model's state_dict file")
            return loaded, {}
    except CheckpointError:
        raise
    except Exception as error:  # torch and safetensors raise many kinds for damaged files
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"cannot read the weights file {path}: {first}. Is it complete? Copy or download it again"
        ) from error
    raise CheckpointError(f"weights file {path} has an unknown ending: use .safetensors, .pt or .pth")
