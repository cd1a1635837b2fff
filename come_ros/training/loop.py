"""What the commands that train have in common."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from ..errors import CheckpointError


@contextlib.contextmanager
def denormals_flushed() -> Iterator[None]:
    """Flushes denormal numbers to zero: tiny gradients and their squares become denormal, which makes CPUs many times slower. The
    setting affects the whole thread, including numpy, so it is restored afterwards."""
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class Clock:
    """Progress of a stage: the share of its steps or of its minutes, whichever is larger."""

    def __init__(self, steps: int, seconds: float) -> None:
        self.steps, self.seconds, self.begun = steps, seconds, time.monotonic()

    def share(self, step: int) -> float:
        by_time = (time.monotonic() - self.begun) / self.seconds if self.seconds else 0.0
        return max(step / self.steps if self.steps else 1.0, by_time)


def read_state(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The state of an earlier run with the same settings. Raises CheckpointError."""
    import torch

    if not os.path.isfile(path):
        raise CheckpointError(f"nothing to resume: no {path}; name the folder of an earlier run, or leave --resume out")
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        before = state["settings"]
    except Exception as error:  # torch raises many kinds of exceptions for damaged files
        raise CheckpointError(f"cannot resume from {path}, it is damaged: leave --resume out to start again") from error
    if other := [
        f"--{k.replace('_', '-')} {before.get(k)}, not {v}" for k, v in settings.items() if before.get(k) != v
    ]:
        raise CheckpointError(
            f"{path} is of a run with {', '.join(other)}: give the same, or leave --resume out to start again"
        )
    return state
