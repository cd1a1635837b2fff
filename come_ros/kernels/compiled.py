"""The CUDA kernels in cuda/*.cu: compiled by CuPy at first use, launched on torch's device and stream.

Each operation is a torch custom op (`torch.ops.come_ros.merge_tokens`, ...), so torch.compile and CUDA graphs treat it as one node:
CuPy on CUDA tensors, the torch twin on the CPU. Arguments are checked in merging.py, not here. No operation has a gradient.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from . import reference

log = logging.getLogger("come_ros")

THREADS = 256  # of a block; as COME_ROS_THREADS in common.cuh
MOST_ROWS = 65535  # most blocks in y; the kernels loop over the rest
MOST_BLOCKS = 2**31 - 1  # in x
OPTIONS = ("-std=c++17",)  # CuPy adds the architecture

MERGE = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int32: "int32",
    torch.int64: "int64",
}
"""element type of the tensor -> its name in the kernel's; integers become float32"""

KERNELS = {
    "merge_layout": "token_merge.cu",
    **{f"merge_{name}": "token_merge.cu" for name in MERGE.values()},
    "merge_float32_x4": "token_merge.cu",
    "merge_float16_x8": "token_merge.cu",
    "merge_bfloat16_x8": "token_merge.cu",
    **{f"restore_{unit}": "token_restore.cu" for unit in (1, 2, 4, 8, 16)},
}
"""every entry point and its file"""


class Launch(NamedTuple):
    """One kernel launch. grid, block: in x and y. words: its arguments (pointers and numbers), 64 bits each."""

    name: str
    grid: tuple[int, int]
    block: tuple[int, int]
    words: tuple[int, ...]


def source(file: str) -> str:
    """The text of cuda/`file` with its #include inlined: CuPy's cache on disk identifies a kernel by its text alone."""
    folder = _folder()
    text = (folder / file).read_text(encoding="utf-8")
    return text.replace('#include "common.cuh"', (folder / "common.cuh").read_text(encoding="utf-8"))


def _folder() -> Path:
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "cuda", package.parent / "cuda"):  # installed, or in a checkout
        if (folder / "common.cuh").is_file():
            return folder
    raise FileNotFoundError(f"no CUDA sources in {package / 'cuda'} nor next to the package: reinstall come_ros")


def merge_layout_launch(
    merged: Tensor, source: Tensor, rev: Tensor, grid: Sequence[int], group: Sequence[int]
) -> Launch:
    """merged (R, M) bool -> source (R, L), rev (R, P) int64."""
    rows, length = source.shape
    words = (merged.data_ptr(), source.data_ptr(), rev.data_ptr(), rows, length, *grid, *group)
    return Launch("merge_layout", (min(rows, MOST_BLOCKS), 1), (THREADS, 1), words)


def merge_launch(
    x: Tensor, source: Tensor, out: Tensor, special: int, grid: Sequence[int], group: Sequence[int]
) -> Launch:
    """x (R or 1, special + P, C) -> out (R, special + L, C), of the same type or float32."""
    rows, tokens, channels = out.shape
    name, packed = f"merge_{MERGE[x.dtype]}", 16 // x.element_size()
    if x.dtype == out.dtype and channels % packed == 0 and _aligned(16, x, out):
        name, channels = f"{name}_x{packed}", channels // packed
    row_step = int(x.shape[0] == rows)
    pointers = (x.data_ptr(), source.data_ptr(), out.data_ptr())
    words = (*pointers, rows, row_step, special, tokens - special, channels, *grid, *group)
    return Launch(name, *_cover(rows, tokens, channels), words)


def restore_launch(x: Tensor, rev: Tensor, out: Tensor, special: int) -> Launch:
    """x (R, special + L, C) -> out (R, special + P, C)."""
    rows, tokens, channels = out.shape
    size = channels * x.element_size()
    unit = next(u for u in (16, 8, 4, 2, 1) if size % u == 0 and _aligned(u, x, out))
    pointers = (x.data_ptr(), rev.data_ptr(), out.data_ptr())
    words = (*pointers, rows, special, x.shape[1] - special, tokens - special, size // unit)
    return Launch(f"restore_{unit}", *_cover(rows, tokens, size // unit), words)


def _aligned(size: int, *tensors: Tensor) -> bool:
    return all(t.data_ptr() % size == 0 for t in tensors)


def _cover(rows: int, tokens: int, units: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Grid and block: threads in x share a token, threads in y handle neighbouring tokens, blocks in y handle rows."""
    across = min(THREADS // 2, 1 << max(units - 1, 0).bit_length())
    down = THREADS // across
    return (min(-(-tokens // down), MOST_BLOCKS), min(rows, MOST_ROWS)), (across, down)


def launch(kernel: Launch, device: torch.device) -> None:
    """Launches the kernel on torch's current stream of `device`, asynchronously."""
    import cupy
    import numpy as np

    index = device.index
    with cupy.cuda.Device(index), _stream(cupy, index):
        function = _function(kernel.name, index)
        function(kernel.grid, kernel.block, tuple(np.uint64(word) for word in kernel.words))


def _stream(cupy: Any, index: int) -> Any:
    """torch's current stream as a CuPy stream."""
    handle = torch.cuda.current_stream(index).cuda_stream
    if hasattr(cupy.cuda.Stream, "from_external"):  # CuPy 14; before, ExternalStream did it
        return cupy.cuda.Stream.from_external(_Foreign(handle))
    return cupy.cuda.ExternalStream(handle, index)


class _Foreign(NamedTuple):
    """A stream in the CUDA stream protocol, which torch's own streams support from 2.10 on."""

    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


@functools.cache
def _function(name: str, index: int) -> Any:
    """The kernel on CUDA device `index`, which must be current: compiled, or from CuPy's cache on disk."""
    function = _module(KERNELS[name], index).get_function(name)
    # reading it loads the kernel: the driver may postpone loading to the first launch, which is forbidden during graph capture
    log.debug("%s on cuda:%d: %d registers", name, index, function.num_regs)
    return function


@functools.cache
def _module(file: str, index: int) -> Any:
    import cupy

    return cupy.RawModule(code=source(file), options=OPTIONS)


@functools.cache
def _obstacle(index: int) -> str:
    """Compiles every kernel for CUDA device `index`. Returns "", or the reason why that failed."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error})"
    try:
        with cupy.cuda.Device(index):
            for name in KERNELS:
                _function(name, index)
    except Exception as error:  # CuPy and its loaders raise many kinds
        log.debug("%s", error)  # compiler messages can have hundreds of lines
        first = (str(error).splitlines() or [repr(error)])[0]
        return f"CuPy {cupy.__version__} cannot compile or load the kernels for cuda:{index} ({first})"
    log.info("kernels on cuda:%d: CuPy %s", index, cupy.__version__)
    return ""


def _install_command() -> str:
    major = (torch.version.cuda or "12").partition(".")[0]
    return f"pip install cupy-cuda{major}x"


@functools.cache
def _choice(kernels: str, device_type: str, index: int) -> str:
    """As `choose`, cached per device so that it logs once."""
    if kernels not in ("auto", "cupy", "torch"):
        raise ConfigError(f"kernels is {kernels!r}, but must be one of auto, cupy, torch")
    if kernels == "torch" or (kernels == "auto" and device_type != "cuda"):
        return "torch"
    found = _obstacle(index) if device_type == "cuda" else f"the tensors are on {device_type}"
    if not found:
        return "cupy"
    fix = f"`{_install_command()}` (for the CUDA version of torch)"
    if kernels == "cupy":
        raise ConfigError(
            f"kernels is cupy, but {found}: it needs a CUDA device and a CuPy that compiles for it; {fix}, or set kernels to auto"
        )
    log.warning("kernels on cuda:%d: torch, since %s; for CuPy's: %s", index, found, fix)
    return "torch"


def choose(kernels: str, device: torch.device) -> str:
    """Resolves the parameter `kernels` (auto, cupy or torch) for `device`: "cupy" or "torch". Compiles at the first call for a
    device.

    Raises ConfigError if `kernels` is cupy and CuPy cannot be used, with the reason and the fix.
    """
    index = device.index if device.index is not None else torch.cuda.current_device() if device.type == "cuda" else 0
    return _choice(kernels, device.type, index)


# torch.compile calls it once, while it traces, instead of tracing into CuPy. This is all that torch.compiler.assume_constant_result
# does, but calling that imports torch._dynamo, which would take longer than all of come_ros at every start.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _merge_layout(merged: Tensor, grid: Sequence[int], group: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
    layout = _empty_layout(merged, grid, group, length)
    if len(merged):
        launch(merge_layout_launch(merged, *layout, grid, group), merged.device)
    return layout


def _empty_layout(merged: Tensor, grid: Sequence[int], group: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
    rows = merged.shape[0]
    return merged.new_empty(rows, length, dtype=torch.long), merged.new_empty(rows, grid[0] * grid[1], dtype=torch.long)


def _merge_tokens(x: Tensor, source: Tensor, special: int, grid: Sequence[int], group: Sequence[int]) -> Tensor:
    return _merged(x, source, _empty_merged(x, source, special, grid, group), special, grid, group)


def _empty_merged(x: Tensor, source: Tensor, special: int, grid: Sequence[int], group: Sequence[int]) -> Tensor:
    return x.new_empty(source.shape[0], special + source.shape[1], x.shape[2])


def _merge_positions(p: Tensor, source: Tensor, special: int, grid: Sequence[int], group: Sequence[int]) -> Tensor:
    return _merged(p, source, _empty_positions(p, source, special, grid, group), special, grid, group)


def _empty_positions(p: Tensor, source: Tensor, special: int, grid: Sequence[int], group: Sequence[int]) -> Tensor:
    return p.new_empty(source.shape[0], special + source.shape[1], 2, dtype=torch.float32)


def _merged(x: Tensor, source: Tensor, out: Tensor, special: int, grid: Sequence[int], group: Sequence[int]) -> Tensor:
    if out.numel():
        launch(merge_launch(x, source, out, special, grid, group), x.device)
    return out


def _restore_tokens(x: Tensor, rev: Tensor, special: int) -> Tensor:
    out = _empty_restored(x, rev, special)
    if out.numel():
        launch(restore_launch(x, rev, out, special), x.device)
    return out


def _empty_restored(x: Tensor, rev: Tensor, special: int) -> Tensor:
    return x.new_empty(rev.shape[0], special + rev.shape[1], x.shape[2])


def _operation(name: str, schema: str, cuda: Callable, cpu: Callable, fake: Callable) -> Callable:
    op = torch.library.custom_op(f"come_ros::{name}", cuda, mutates_args=(), device_types="cuda", schema=schema)
    op.register_kernel("cpu")(cpu)
    op.register_fake(fake)
    return op


_GROUPS = "SymInt special, SymInt[] grid, SymInt[] group"
merge_layout = _operation(
    "merge_layout",
    "(Tensor merged, SymInt[] grid, SymInt[] group, SymInt length) -> (Tensor, Tensor)",
    _merge_layout,
    lambda merged, grid, group, length: reference.merge_layout(merged, tuple(grid), tuple(group), length),
    _empty_layout,
)
merge_tokens = _operation(
    "merge_tokens",
    f"(Tensor x, Tensor source, {_GROUPS}) -> Tensor",
    _merge_tokens,
    lambda x, source, special, grid, group: reference.merge_tokens(x, source, special, tuple(grid), tuple(group)),
    _empty_merged,
)
merge_positions = _operation(
    "merge_positions",
    f"(Tensor positions, Tensor source, {_GROUPS}) -> Tensor",
    _merge_positions,
    lambda p, source, special, grid, group: reference.merge_positions(p, source, special, tuple(grid), tuple(group)),
    _empty_positions,
)
restore_tokens = _operation(
    "restore_tokens",
    "(Tensor x, Tensor rev, SymInt special) -> Tensor",
    _restore_tokens,
    reference.restore_tokens,
    _empty_restored,
)
