"""CUDA graphs: a stage of the model is recorded for its input shapes and replayed, which costs the host almost no time.

This is possible because nothing in a stage depends on values: all lengths follow from shapes and parameters.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

log = logging.getLogger("come_ros")

MOST = 12  # recordings kept at a time; each holds its inputs and outputs
MOST_BYTES = (
    2**29
)  # limit of a call's arguments: larger calls keep the device busy for so long that launches cost nothing


class NotRecordable(TypeError):
    """Raised for a value that holds something that is neither a tensor nor a constant."""


class _Hole(NamedTuple):
    """Placeholder of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def taken_apart(value: Any) -> tuple[Any, list[Tensor]]:
    """(form, tensors) of nested tuples, lists, dictionaries and dataclasses; the form is hashable and holds only shapes and types
    of tensors. Raises NotRecordable."""
    tensors: list[Tensor] = []

    def form(v: Any) -> Any:
        if isinstance(v, Tensor):
            tensors.append(v)
            return _Hole(tuple(v.shape), v.dtype)
        if v is None or isinstance(v, (bool, int, float, str)):
            return v
        if isinstance(v, (tuple, list)):
            return type(v), tuple(form(each) for each in v)
        if isinstance(v, dict):
            return dict, tuple((key, form(each)) for key, each in v.items())
        if dataclasses.is_dataclass(v) and not isinstance(v, type):
            return type(v), tuple((f.name, form(getattr(v, f.name))) for f in dataclasses.fields(v))
        raise NotRecordable(f"{type(v).__name__} is neither a tensor nor a constant")

    return form(value), tensors


def put_together(form: Any, tensors: Iterator[Tensor]) -> Any:
    """Rebuilds the value with these tensors; every container is new."""
    if isinstance(form, _Hole):
        return next(tensors)
    if not isinstance(form, tuple):
        return form
    kind, parts = form
    if kind is dict:
        return {key: put_together(each, tensors) for key, each in parts}
    if dataclasses.is_dataclass(kind):
        return kind(**{name: put_together(each, tensors) for name, each in parts})
    values = [put_together(each, tensors) for each in parts]
    return kind(*values) if hasattr(kind, "_fields") else kind(values)


def cloned(value: Any) -> Any:
    """A copy of all its tensors."""
    form, tensors = taken_apart(value)
    return put_together(form, iter([t.clone() for t in tensors]))


class _Recording(NamedTuple):
    graph: Any
    given: list[Tensor]
    result: Any


class Graphs:
    """Calls functions; from the second call with the same form of arguments on, it replays a recording of the first.

    The result of a replayed call is overwritten by the next replay of any function: copy it or use it before. The functions must do
    all their work on the device, in torch's current stream, and must not read anything that changes except their arguments.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seen: OrderedDict[Any, _Recording | None] = OrderedDict()
        self._failed: set[Any] = set()
        self._pool: Any = None

    def __call__(self, name: tuple[str, Any], function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments). name: identifies the function, and everything else that the recording depends on."""
        try:
            form, tensors = taken_apart(arguments)
            key = name, form
            first = key not in self._seen
        except TypeError as error:  # also of what cannot be hashed
            self._said(name[0], str(error))
            return function(*arguments)
        if (
            first or key in self._failed or sum(t.nbytes for t in tensors) > MOST_BYTES
        ):  # this form may never come again
            self._keep(key, None)
            return function(*arguments)
        recording = self._seen[key]
        if recording is None:
            try:
                recording = self._record(function, form, tensors)
            except RuntimeError as error:
                from .device import device_error

                if device_error(error) is not None:
                    raise
                self._said(name[0], str(error).splitlines()[0])
                self._failed.add(key)
                return function(*arguments)
            self._keep(key, recording)
        self._seen.move_to_end(key)
        for ours, new in zip(recording.given, tensors, strict=True):
            ours.copy_(new)
        recording.graph.replay()
        return recording.result

    def clear(self) -> None:
        """Deletes all recordings and frees their memory."""
        self._seen.clear()
        self._pool = None

    def _keep(self, key: Any, recording: _Recording | None) -> None:
        self._seen[key] = recording
        while len(self._seen) > MOST:
            self._seen.popitem(last=False)

    def _record(self, function: Callable[..., Any], form: Any, tensors: list[Tensor]) -> _Recording:
        given = [t.clone() for t in tensors]
        # objects created at first use (handles, kernels, plans of libraries) must exist before the recording
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(2):
                function(*put_together(form, iter(given)))
        torch.cuda.current_stream(self._device).wait_stream(side)
        if self._pool is None:
            # one memory pool for all: they never run at the same time
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = function(*put_together(form, iter(given)))
        return _Recording(graph, given, result)

    def _said(self, name: str, why: str) -> None:
        log.warning("%s cannot be a CUDA graph (%s): it runs step by step", name, why)
