"""The model's predictions of windows, kept on disk: made in several processes, used by one run of the pipeline.

What a window is and what becomes of its prediction is decided by that run alone, so its results are those of a run without them. A window
whose prediction is not there is predicted as usual.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backbones.backbone import Backbone
from ..backbones.stream import FrameCache, FrameName, Step
from ..config import Config
from ..errors import ConfigError
from ..files import whole_file
from ..types import DeviceMemory, Known, Prediction

ARRAYS = ("depth", "confidence", "window_from_camera", "intrinsics", "merged", "meaningful", "places")
NUMBERS = ("kept_ratio", "read_ratio", "reused", "saved_ms")


class _Cache:
    """The cache of the model, and by which batch of the encoder each frame in it was made, on which the last bits depend."""

    usage = None

    def __init__(self, inner: FrameCache) -> None:
        self.inner = inner
        self.batches: dict[FrameName, bytes] = {}
        self.reused = self.encoded = 0

    def __len__(self) -> int:
        return len(self.batches)

    def clear(self) -> None:
        self.inner.clear()
        self.batches.clear()

    def enter(self, names: Sequence[FrameName], images: np.ndarray) -> bytes:
        """Digest of the batches of a window's frames, after its new ones went through the encoder together."""
        new = [i for i, name in enumerate(names) if name not in self.batches]
        batch = hashlib.sha256(np.ascontiguousarray(images[new]).tobytes()).digest()
        self.batches = {name: self.batches.get(name, batch) for name in names}
        self.encoded, self.reused = self.encoded + len(new), self.reused + len(names) - len(new)
        return b"".join(self.batches.values())


class Kept(Backbone):
    """A backbone whose predictions are read from `folder` where they are there; with `make` all are made and added to it.

    Their names come from the images, from what is known and wanted of them, and from how the encoder saw them. counts: windows that
    were "found" and "made"; copies share it.
    """

    def __init__(self, inner: Backbone, folder: Path, make: bool = False) -> None:
        """Raises ConfigError for a stream, whose windows depend on all that came before."""
        if inner.causal:
            raise ConfigError(
                f"the backbone {inner.name} is a stream, whose windows depend on all that came before: its recordings cannot be cut"
            )
        self._inner, self._folder, self._make, self._form = inner, folder, make, ""
        self.name, self.patch_size, self.native_side = inner.name, inner.patch_size, inner.native_side
        self.device, self.about, self.metric, self.inputs = inner.device, inner.about, inner.metric, inner.inputs
        self.streams = inner.streams
        self.counts = {"found": 0, "made": 0}

    @property
    def places(self) -> str:
        return self._inner.places

    @property
    def description(self) -> dict[str, str]:
        return self._inner.description

    def image_size(self, width: int, height: int, side: int) -> tuple[int, int]:
        return self._inner.image_size(width, height, side)

    def configured(self, config: Config) -> Backbone:
        out = copy.copy(self)
        out._inner, out._form = self._inner.configured(config), repr(config.accelerator)
        return out

    def dense(self) -> Backbone:
        return self._inner.dense()

    def new_cache(self) -> FrameCache:
        return _Cache(self._inner.new_cache())

    def free_memory(self) -> None:
        self._inner.free_memory()

    def memory(self) -> DeviceMemory | None:
        return self._inner.memory()

    def predict(
        self,
        images: np.ndarray,
        stop: Callable[[], bool] | None = None,
        known: Known | None = None,
        step: Step | None = None,
    ) -> Prediction:
        cache = None if step is None else step.cache
        assert cache is None or isinstance(cache, _Cache)
        path = self._folder / f"{self._name(images, known, step, cache)}.safetensors"
        found = None if self._make else _read(path, images)
        self.counts["made" if found is None else "found"] += 1
        if found is not None:
            return found
        given = step if step is None or cache is None else dataclasses.replace(step, cache=cache.inner)
        prediction = self._inner.predict(images, stop, known, given)
        if self._make:
            _write(path, prediction)
        return prediction

    def _name(self, images: np.ndarray, known: Known | None, step: Step | None, cache: _Cache | None) -> str:
        digest = hashlib.sha256(repr((self._form, images.shape, None if step is None else step.dense)).encode())
        digest.update(np.ascontiguousarray(images).tobytes())
        for value in () if known is None else vars(known).values():
            digest.update(np.ascontiguousarray(value).tobytes())
        if step is not None and cache is not None:
            digest.update(cache.enter(step.names, images))
        return digest.hexdigest()[:40]


def _write(path: Path, prediction: Prediction) -> None:
    """Raises OutputError."""
    from safetensors.numpy import save

    arrays: dict[str, NDArray[Any]] = {
        name: np.ascontiguousarray(value) for name in ARRAYS if (value := getattr(prediction, name)) is not None
    }
    for name in ("merged", "meaningful"):
        if name in arrays:
            arrays[name] = arrays[name].astype(np.uint8)
    arrays |= {name: np.array([getattr(prediction, name)], np.float64) for name in NUMBERS}
    if prediction.dense is not None:
        arrays["dense"] = np.array(prediction.dense, np.int64)
    with whole_file(path) as stream:
        stream.write(save(arrays))


def _read(path: Path, images: np.ndarray) -> Prediction | None:
    """None if it is not there, or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: Mapping[str, Any] = load(path.read_bytes())
        values: dict[str, Any] = {name: arrays.get(name) for name in ARRAYS}
        for name in ("merged", "meaningful"):
            values[name] = None if values[name] is None else values[name].astype(bool)
        numbers = {name: float(arrays[name][0]) for name in NUMBERS}
        dense = tuple(int(i) for i in arrays["dense"]) if "dense" in arrays else None
        return Prediction(images=images, dense=dense, **values, **{**numbers, "reused": int(numbers["reused"])})  # type: ignore[arg-type]
    except (OSError, SafetensorError, KeyError, IndexError):
        return None
