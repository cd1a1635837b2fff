"""Reading and writing weights files, without ever running code from them."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from typing import Any

import torch

from ..bundled import BUNDLED, MODEL_FOLDER
from ..errors import CheckpointError, ConfigError
from ..files import write_safetensors
from ..plugins import BACKBONES
from ..weights import fill, read_checkpoint
from .da3 import DepthAnything3
from .lingbot import LingBot
from .mapanything import MapAnything
from .model import GeometryModel
from .pi3 import Pi3
from .vggt import VGGT

log = logging.getLogger("come_ros")

MODELS: dict[str, type[GeometryModel]] = {m.name: m for m in (LingBot, VGGT, MapAnything, Pi3, DepthAnything3)}
"""those built in; one whose files hold another's keys and more comes before it"""

_SIZES_KEY, _BACKBONE_KEY = "come_ros.sizes", "come_ros.backbone"  # in the safetensors metadata of our own files


def bundled_weights(backbone: str = "vggt") -> str:
    """Path of the small model shipped with the package, which runs as a window (vggt) or as a stream (lingbot). Raises CheckpointError if
    the file is missing, or there is none for the backbone."""
    if backbone not in ("vggt", "lingbot"):
        source = getattr(BACKBONES.load(backbone), "weights_from", "")
        raise CheckpointError(
            f"no weights of the backbone {backbone} ship with come_ros: set the parameter weights to a file"
            f"{f' ({source})' if source else ''}, or backbone to vggt"
        )
    path = os.path.join(MODEL_FOLDER, f"{BUNDLED}.safetensors")
    if not os.path.isfile(path):
        raise CheckpointError(
            f"the bundled model is missing ({path}): reinstall come_ros, or set the parameter weights to a file"
        )
    return path


def load_vggt(path: str) -> VGGT:
    """load_model for the backbone vggt."""
    model = load_model("vggt", path)
    assert isinstance(model, VGGT)
    return model


def load_model(backbone: str, path: str) -> GeometryModel:
    """The model in fp32 on the CPU with the weights of `path`. backbone: its name, see plugins.BACKBONES, or "" for whichever of MODELS
    the file holds.

    Sizes come from the file's own metadata (files written by save_checkpoint); a file without it must be a published one.
    Raises CheckpointError, naming the file and the keys, if it is unreadable, incomplete, of another shape or another backbone's.
    """
    wanted: type[GeometryModel] | None = BACKBONES.load(backbone) if backbone else None
    models = {**MODELS, **({wanted.name: wanted} if wanted is not None else {})}
    state, metadata = read_checkpoint(path)
    if _SIZES_KEY in metadata:
        found = metadata.get(_BACKBONE_KEY, "vggt")
    else:
        other = "vggt" if wanted is None else wanted.name
        found = next((m.name for m in models.values() if m.landmark in m.own_names(state)), other)
    if found not in models:
        raise CheckpointError(
            f"{path} holds weights of the backbone {found}, which this come_ros does not know: update it"
        )
    adopts = wanted is not None and found in wanted.same_keys
    if wanted is not None and found != wanted.name and not adopts:
        raise CheckpointError(
            f"{path} holds weights of the backbone {found}, but {backbone} was asked for: set backbone to {found}, or give another file"
        )
    kind = wanted if wanted is not None and adopts else models[found]
    if _SIZES_KEY in metadata:
        sizes = _stored_sizes(path, models[found], metadata[_SIZES_KEY])
        if kind is not models[found]:
            sizes = kind.adopted(sizes)
    else:
        if doubt := kind.doubt(state):
            log.warning("%s %s", path, doubt)
        state = kind.own_names(state)
        sizes = kind.published_sizes(state)
    with torch.device("meta"):  # allocates and initialises nothing, since all weights are about to be replaced
        model = kind(sizes)
    fill(model, state, path)
    return model


def _stored_sizes(path: str, kind: type[GeometryModel], text: str) -> Any:
    """The sizes in the metadata of a file of ours. Raises CheckpointError."""
    known = {f.name for f in dataclasses.fields(kind.sizes_type)}
    stored = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
    if set(stored) - known:
        raise CheckpointError(
            f"{path} was written by a newer come_ros (unknown sizes {sorted(set(stored) - known)}): update come_ros"
        )
    return kind.sizes_type(**{**kind.unsaid, **stored})


def save_checkpoint(
    path: str, model: GeometryModel, dtype: torch.dtype = torch.float16, extra: dict[str, str] | None = None
) -> None:
    """Writes `model` as safetensors with its sizes in the metadata, atomically. Raises OutputError."""
    state = {k: v.detach().to("cpu", dtype).contiguous() for k, v in model.state_dict().items()}
    about = {_BACKBONE_KEY: model.name, _SIZES_KEY: json.dumps(dataclasses.asdict(model.sizes))}
    write_safetensors(path, state, {**about, **(extra or {})})


def variants(backbone: str) -> dict[str, Any]:
    """Name -> sizes of the backbone's models: VARIANTS of the module of its class. Raises ConfigError if it has none."""
    kind = BACKBONES.load(backbone)
    found: dict[str, Any] = getattr(sys.modules[kind.__module__], "VARIANTS", {})
    if not found:
        raise ConfigError(
            f"the backbone {backbone} has no sizes for random weights: its module needs VARIANTS, name -> sizes"
        )
    return found
