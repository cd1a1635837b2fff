"""What devices raise becomes OutOfMemory or DeviceLost; once that is forgotten, so are the tensors."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from come_ros.backbones.device import device_error, device_errors
from come_ros.errors import DeviceLost, OutOfMemory


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), OutOfMemory),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), OutOfMemory),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"), DeviceLost),
        (RuntimeError("CUDA error: device-side assert triggered"), DeviceLost),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"), None),
    ],
)  # fmt: skip
def test_errors_are_told_apart(error, kind) -> None:
    assert device_error(error) is kind
    with pytest.raises(kind or type(error)) as raised, device_errors():
        raise error
    assert "\n" not in str(raised.value)


def test_what_ran_out_of_memory_is_free_again_when_that_is_forgotten() -> None:
    class Held:
        """Stands in for a tensor."""

    seen: list[weakref.ref] = []

    def work() -> None:
        held = Held()
        seen.append(weakref.ref(held))
        torch.empty(2**60, dtype=torch.uint8)

    gc.disable()
    try:
        with pytest.raises(OutOfMemory), device_errors():
            work()
        assert seen[0]() is None
    finally:
        gc.enable()
