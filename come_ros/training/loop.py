"""What the commands that train have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def denormals_flushed() -> Iterator[None]:
    """Tiny gradients and their squares become denormal numbers, on which CPUs are many times slower: zeros meanwhile. The setting is of
    the whole thread, numpy included, so it is taken back."""
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
