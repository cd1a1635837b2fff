"""Weights files: read without executing code, loaded strictly into a module, and told from others by their tensors."""

from __future__ import annotations

import functools
import hashlib
import os
import zipfile
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


PART = 1 << 16  # bytes of a tensor that tell it from others


def fingerprint_of_tensors(path: str) -> str:
    """16 hexadecimal digits that differ for different weights: of name, shape, dtype and the first PART bytes of every tensor of the file,
    so that large files are not read as a whole. Metadata and format, .safetensors or .pt, change nothing. Raises CheckpointError."""
    about = os.stat(path) if os.path.isfile(path) else None
    return _fingerprint(path, *(() if about is None else (about.st_mtime_ns, about.st_size)))


@functools.lru_cache(maxsize=8)
def _fingerprint(path: str, *_state: int) -> str:
    tensors, _ = read_checkpoint(path, mapped=True)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        first = tensor.reshape(-1)[: PART // tensor.element_size()].contiguous()
        digest.update(first.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def read_checkpoint(path: str, mapped: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a .safetensors file, or of a .pt/.pth file read with weights_only. mapped: a .pt file is read where its
    tensors are looked at, as the others are in any case. Raises CheckpointError."""
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
            loaded: Any = torch.load(
                path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path)
            )
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
