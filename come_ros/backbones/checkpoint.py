"""Reading and writing weights files, without ever running code from them."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .da3 import DepthAnything3
from .mapanything import MapAnything
from .model import GeometryModel
from .pi3 import Pi3
from .vggt import VGGT

MODELS: dict[str, type[GeometryModel]] = {m.name: m for m in (VGGT, MapAnything, Pi3, DepthAnything3)}

MODEL_FOLDER = os.path.join(os.path.dirname(os.path.dirname(__file__)), "models")
_SIZES_KEY, _BACKBONE_KEY = "come_ros.sizes", "come_ros.backbone"  # in the safetensors metadata of our own files


def bundled_weights(backbone: str = "vggt") -> str:
    """Path of the small model that ships with the package. Raises CheckpointError if it is not there, or there is none."""
    if backbone != "vggt":
        raise CheckpointError(
            f"no weights of the backbone {backbone} ship with come_ros: name a file with weights:=FILE "
            f"({MODELS[backbone].weights_from}), or set backbone:=vggt"
        )
    path = os.path.join(MODEL_FOLDER, "vggt_tiny.safetensors")
    if not os.path.isfile(path):
        raise CheckpointError(
            f"the bundled model is missing ({path}): reinstall come_ros, or name a file with weights:=FILE"
        )
    return path


def load_vggt(path: str) -> VGGT:
    """load_model for the backbone vggt."""
    model = load_model("vggt", path)
    assert isinstance(model, VGGT)
    return model


def load_model(backbone: str, path: str) -> GeometryModel:
    """The model in fp32 on the CPU with the weights of `path`. backbone: one of MODELS, or "" for whichever the file holds.

    Sizes come from the file's own metadata (files written by save_checkpoint); a file without it must be a published one.
    Raises CheckpointError, naming the file and the keys, if it is unreadable, incomplete, of another shape or another backbone's.
    """
    state, metadata = read_checkpoint(path)
    if _SIZES_KEY in metadata:
        found = metadata.get(_BACKBONE_KEY, "vggt")
    else:
        found = next((m.name for m in MODELS.values() if m.landmark in m.own_names(state)), backbone or "vggt")
    if found not in MODELS:
        raise CheckpointError(
            f"{path} holds weights of the backbone {found}, which this come_ros does not know: update it"
        )
    if found != (backbone or found):
        raise CheckpointError(
            f"{path} holds weights of the backbone {found}, but {backbone} was asked for: set backbone:={found}, or give another file"
        )
    kind = MODELS[found]
    if _SIZES_KEY in metadata:
        known = {f.name for f in dataclasses.fields(kind.sizes_type)}
        stored = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(metadata[_SIZES_KEY]).items()}
        if set(stored) - known:
            raise CheckpointError(
                f"{path} was written by a newer come_ros (unknown sizes {sorted(set(stored) - known)}): update come_ros"
            )
        sizes = kind.sizes_type(**{**kind.unsaid, **stored})
    else:
        state = kind.own_names(state)
        sizes = kind.published_sizes(state)
    with torch.device("meta"):  # no memory and no random numbers for weights that are about to be replaced
        model = kind(sizes)
    fill(model, state, path)
    return model


def fill(model: nn.Module, state: dict[str, Tensor], path: str) -> None:
    """Put `state` into `model` strictly: every key, every shape. Raises CheckpointError."""
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
            f"weights file {path} does not exist: check weights:=, or leave it empty for the bundled model"
        )
    try:
        if path.endswith(".safetensors"):
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        if path.endswith((".pt", ".pth")):
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
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


def save_checkpoint(
    path: str, model: GeometryModel, dtype: torch.dtype = torch.float16, extra: dict[str, str] | None = None
) -> None:
    """Write `model` as safetensors with its sizes in the metadata; whole or not at all (beside, then rename)."""
    from safetensors.torch import save_file

    state = {k: v.detach().to("cpu", dtype).contiguous() for k, v in model.state_dict().items()}
    beside = path + ".part"
    about = {_BACKBONE_KEY: model.name, _SIZES_KEY: json.dumps(dataclasses.asdict(model.sizes))}
    save_file(state, beside, metadata={**about, **(extra or {})})
    os.replace(beside, path)
