"""Splits time, or any other growing counter, by the parts of a model: measured at the pipeline's own steps, without patching.

A backbone calls `check` before each block and the accelerator's steps around it. `Split` takes a reading at each of them; the
accelerator's `reach` tells which block is running. Reading a clock gives the time of each part, reading a counter its FLOPs.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PARTS = ("encoder head", "predictor", "merge", "encoder tail", "frame", "global", "restore", "heads")
"""encoder head: from the patch embedding to the block after which the plan is made; merge: the rest of the plan, compress,
condense, and whose keys are read; restore: with expand; encoder tail: with the way into the trunk; global: with the gathering of
the tapped levels."""
WHOLE = "all but heads"
"""of a pass that is replayed from CUDA graphs, which have no parts, in the place of all PARTS but the heads"""
OWN = ("predictor", "merge", "restore")
"""the parts that an accelerator adds; key weights are counted as attention"""


class Split:
    """Readings of one pass. read: returns the current reading. between: (a, b) -> growth from reading a to reading b, evaluated
    only at the end. plan_block: index of the last block of the encoder's head, None if all of it is."""

    def __init__(
        self, read: Callable[[], Any], between: Callable[[Any, Any], float], plan_block: int | None = None
    ) -> None:
        self._read, self._between, self._plan_block = read, between, plan_block
        self._block = 0  # everything before the first check is the embedding
        self._part_of = {0: PARTS[0]}
        self._marks: list[tuple[Any, str | int]] = []  # (reading, part or block that begins)
        self._mark(0)

    def check(self) -> None:
        """A block begins; `running` will name it. Blocks that are not named are heads."""
        self._block += 1
        self._mark(self._block)

    def running(self, part: str, index: int) -> None:
        """Names the block that began (see accelerators.Layer)."""
        if part == "encoder":
            is_head = self._plan_block is None or index <= self._plan_block
            part = "encoder head" if is_head else "encoder tail"
        self._part_of[self._block] = part

    @contextmanager
    def inside(self, part: str) -> Iterator[None]:
        """Within this context the current part is `part`; afterwards the previous one."""
        before = self._marks[-1][1]
        self._mark(part)
        yield
        self._mark(before)

    def finish(self) -> None:
        """The pass is over."""
        self._mark("end")

    def parts(self) -> dict[str, float]:
        """The share of each of PARTS, after `finish`."""
        out = dict.fromkeys(PARTS, 0.0)
        for (begin, what), (end, _) in itertools.pairwise(self._marks):
            part = what if isinstance(what, str) else self._part_of.get(what, "heads")
            out[part] += self._between(begin, end)
        return out

    def _mark(self, what: str | int) -> None:
        self._marks.append((self._read(), what))


class Watched:
    """Wraps an accelerator so that its steps report to a Split when they begin and end."""

    def __init__(self, accelerator: Any, split: Split) -> None:
        from ...accelerators.base import Accelerator

        self._accelerator, self._split = _with_watched_predictor(accelerator, split), split
        self._base = Accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def plan(self, *args: Any) -> Any:
        with self._split.inside("merge"):
            return self._accelerator.plan(*args)

    def compress(self, *args: Any) -> Any:
        with self._split.inside("merge"):
            return self._accelerator.compress(*args)

    def restore(self, *args: Any) -> Any:
        with self._split.inside("restore"):
            return self._accelerator.restore(*args)

    def attend(self, *args: Any) -> Any:
        """The base class's attention, so that merging inside is measured; an overridden one is measured as a whole."""
        if type(self._accelerator).attend is not self._base.attend:
            return self._accelerator.attend(*args)
        return self._base.attend(self, *args)

    def condense(self, q: Any, k: Any, v: Any, plan: Any, layer: Any) -> Any:
        if type(self._accelerator).condense is self._base.condense:
            return q, k, v
        with self._split.inside("merge"):
            return self._accelerator.condense(q, k, v, plan, layer)

    def expand(self, x: Any, plan: Any, layer: Any) -> Any:
        if type(self._accelerator).expand is self._base.expand:
            return x
        with self._split.inside("restore"):
            return self._accelerator.expand(x, plan, layer)

    def reach(self, tokens: Any, plan: Any, layer: Any) -> Any:
        self._split.running(layer.part, layer.index)
        if not self._accelerator.takes:
            return self._accelerator.reach(tokens, plan, layer)
        with self._split.inside("merge"):
            return self._accelerator.reach(tokens, plan, layer)


def _with_watched_predictor(accelerator: Any, split: Split) -> Any:
    """A copy whose predictor reports to the split; in a combination, that of the accelerator that has one."""
    out = copy.copy(accelerator)
    if hasattr(out, "reducer"):
        out.reducer = _with_watched_predictor(out.reducer, split)
    predictor = getattr(out, "predictor", None)
    if predictor is not None:

        def watched(tokens: Any) -> Any:
            with split.inside("predictor"):
                return predictor(tokens)

        out.predictor = watched
    return out


def timed(backbone: Any, x: Any, plan_block: int | None) -> tuple[dict[str, float], Any, Any]:
    """Milliseconds by part of one pass of TorchBackbone `backbone` over images x (1, S, 3, H, W), and what `run` returns.

    plan_block: see Split; given, not asked of the accelerator, so that the dense model is split at the same place. On CUDA the
    times are the device's (events in its stream); the device is idle before and after. Where passes are replayed, the parts are
    WHOLE, measured separately, and heads, the rest of a whole pass: see `warmed`.
    """
    from ...backbones.device import DeviceClock

    clock = DeviceClock(x.device)
    clock.synchronize()
    if backbone.replays:
        begun = clock.read()
        backbone.run_trunk(x)
        middle = clock.read()
        out, trunk = backbone.run(x)
        end = clock.read()
        whole = clock.between(begun, middle)
        return {WHOLE: whole, "heads": clock.between(middle, end) - whole}, out, trunk
    split = Split(clock.read, clock.between, plan_block)
    out, trunk = _run(backbone, x, split)
    split.finish()
    clock.synchronize()
    return split.parts(), out, trunk


def warmed(backbone: Any, x: Any) -> None:
    """Runs the passes needed before `timed` measures replays: one that runs eagerly, one that is recorded."""
    for _ in range(2 if backbone.replays else 0):
        backbone.run_trunk(x)
        backbone.run(x)


def count_flops(backbone: Any, x: Any, plan_block: int | None) -> dict[str, float]:
    """FLOPs by part of one pass, computed from the shapes of its matrix products, convolutions and attention: a multiply-add counts 2, all
    else nothing. Kernels that torch.compile made are not seen (FlexAttention on a GPU: kernels/attention.py)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def cpu_flash(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **more: Any) -> int:
        return sdpa_flop_count(q, k, v)  # type: ignore[no-untyped-call]

    missing = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: cpu_flash}
    with FlopCounterMode(display=False, custom_mapping=missing) as counter:
        split = Split(counter.get_total_flops, lambda a, b: b - a, plan_block)
        _run(backbone, x, split)
        split.finish()
    return split.parts()


def _run(backbone: Any, x: Any, split: Split) -> tuple[Any, Any]:
    return backbone.accelerated(Watched(backbone.accelerator, split)).run(x, split.check)


def matmul_rate(device: Any, dtype: Any, side: int = 0, repeats: int = 8) -> float:
    """FLOP/s of the fastest of some products of square matrices: the machine's speed for large matrices of that type."""
    import torch

    from ...backbones.device import DeviceClock

    side = side or (8192 if device.type == "cuda" else 1536)
    a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    clock = DeviceClock(device)
    best = float("inf")
    for _ in range(repeats):
        begin = clock.read()
        a @ b
        best = min(best, clock.between(begin, clock.read()))
    return 2e3 * side**3 / best
