"""The device a model runs on: choice of device, precision and attention kernel, timing, and translation of its errors."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ComeRosError, ConfigError, DeviceLost, OutOfMemory

log = logging.getLogger("come_ros")


class DeviceClock:
    """Records times on a device without synchronising: on CUDA by events in the current stream, elsewhere by the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def read(self) -> Any:
        """Records the current time."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Milliseconds between two recorded times; on CUDA this waits until the device has reached the second one."""
        if self._device.type != "cuda":
            return 1e3 * float(end - begin)
        end.synchronize()
        return float(begin.elapsed_time(end))

    def synchronize(self) -> None:
        """Waits until the device has finished all queued work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


# Messages of allocators and drivers: torch has exception classes for them only since 2.5 and 2.8, and none for the CPU.
_FULL = ("out of memory", "can't allocate memory", "cannot allocate memory", "status_alloc_failed")
_LOST = ("illegal memory access", "device-side assert", "unspecified launch failure", "illegal instruction", "misaligned address",
         "device is lost", "device has been lost", "hardware stack error", "uncorrectable ecc")  # fmt: skip


@contextmanager
def device_errors() -> Iterator[None]:
    """Turns exceptions of a device into OutOfMemory or DeviceLost, with a one-line message. Release the exception before trying
    again: its traceback holds the tensors."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        kind = device_error(error)
        if kind is None:
            raise
        raise kind((str(error).strip().splitlines() or [type(error).__name__])[0]) from None


def device_error(error: Exception) -> type[ComeRosError] | None:
    """The kind of device error that an exception of torch, CuPy or Python reports: OutOfMemory, DeviceLost, or None for anything
    else."""
    said = str(error).lower()
    if isinstance(error, MemoryError) or any(words in said for words in _FULL):
        return OutOfMemory
    return DeviceLost if any(words in said for words in _LOST) else None


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Copies to NumPy arrays. From a GPU, all copies are queued and the host waits once."""
    out = {}
    for name, tensor in tensors.items():
        if tensor.device.type == "cuda":
            out[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        else:
            out[name] = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    for device in {t.device for t in tensors.values() if t.device.type == "cuda"}:
        torch.cuda.current_stream(device).synchronize()
    return {name: tensor.numpy() for name, tensor in out.items()}


def choose_device(wish: str) -> torch.device:
    """`auto` is CUDA if a tensor can be created there, else the CPU with a warning. Raises ConfigError otherwise."""
    if wish not in ("auto", "cpu") and not wish.startswith("cuda"):
        raise ConfigError(f"device is {wish!r}, but must be auto, cpu, cuda or cuda:N")
    if wish == "cpu":
        return torch.device("cpu")
    name = "cuda" if wish == "auto" else wish
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # no driver, no device, or torch built without CUDA
        reason = str(error).splitlines()[0]
        if wish == "auto":
            log.warning("no usable CUDA (%s): running on the CPU; set device to cpu to silence this", reason)
            return torch.device("cpu")
        raise ConfigError(
            f"device {wish!r} cannot be used ({reason}): set device to auto or cpu, or install a CUDA build of torch"
        ) from error
    return torch.device(name)


def choose_precision(wish: str, device: torch.device) -> torch.dtype:
    """fp32 on the CPU; on a GPU bf16, or fp16 below compute capability 8.0."""
    if device.type == "cpu":
        if wish in ("bf16", "fp16"):
            raise ConfigError(f"precision is {wish!r}, but the CPU runs fp32 only: set precision to auto or fp32")
        return torch.float32
    if wish == "auto":
        wish = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[wish]


def choose_attention_kernel(
    device: torch.device, dtype: torch.dtype, wish: str = "auto"
) -> tuple[str, Callable[[], Any]]:
    """Name of the attention kernel, and a context in which scaled_dot_product_attention uses this kernel only.

    wish: flash, cudnn, efficient, or auto: the fastest of them on this device, timed. Raises ConfigError if it is not available.
    """
    if device.type == "cpu":
        return "torch SDPA, cpu flash", nullcontext
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    q = torch.randn(1, 16, 4096, 64, device=device, dtype=dtype)
    clock, ms, why = DeviceClock(device), {}, "it was not tried"
    for name in backends if wish == "auto" else [wish]:
        try:
            with sdpa_kernel(backends[name]):
                for _ in range(3):  # the first call makes plans
                    F.scaled_dot_product_attention(q, q, q)
                begun = clock.read()
                for _ in range(5):
                    F.scaled_dot_product_attention(q, q, q)
                ms[name] = clock.between(begun, clock.read())
        except RuntimeError as error:  # this one does not run on the device at this precision
            why = str(error).splitlines()[0]
    if not ms and wish != "auto":
        raise ConfigError(
            f"attention is {wish}, but it does not run on {torch.cuda.get_device_name(device)} in {dtype} ({why}): set attention to auto"
        )
    if not ms:
        return "torch SDPA, math", lambda: sdpa_kernel(SDPBackend.MATH)
    best = min(ms, key=lambda name: ms[name])
    # what it does not support (fp32, masks) falls through to the next
    order = list(dict.fromkeys([backends[best], SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]))
    if "set_priority" in inspect.signature(sdpa_kernel).parameters:  # torch 2.6
        return f"torch SDPA, {best}", lambda: sdpa_kernel(order, set_priority=True)
    return f"torch SDPA, {best}", lambda: sdpa_kernel([backends[best], SDPBackend.MATH])
