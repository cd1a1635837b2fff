"""What all training loops share: progress, running means, checkpoints, the log."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..companions import FINGERPRINT, WEIGHTS
from ..errors import CheckpointError
from ..files import shown, whole_file

if TYPE_CHECKING:
    import torch
    from torch.utils.data import IterableDataset


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


def bf16_pays(device: torch.device) -> bool:
    """Whether a model trains faster in bf16 there: on GPUs and CPUs with instructions for it. A CPU without them takes two to five times
    as long as in fp32. False for a CPU if this torch (before 2.13) cannot tell."""
    import torch

    if device.type != "cpu":
        return torch.cuda.is_bf16_supported()
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # avx512_bf16, amx_bf16; others on ARM
    return any(there for name, there in found.items() if name.endswith("bf16"))


@contextlib.contextmanager
def workers_ended() -> Iterator[None]:
    """Ends the worker processes that the block started, whatever ends it: torch lets each complete its batch, which may take seconds."""
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        for worker in set(multiprocessing.active_children()) - before:
            worker.terminate()  # torch's workers exit properly if it is their parent that sends this


def made_by_workers(batches: IterableDataset[Any], workers: int) -> Iterator[Any]:
    """What `batches` yields, made by other processes.

    While they start, OpenCV uses one thread, and so do they. Its threads do not survive a fork: a worker that inherits them waits for
    ever as soon as it changes their number.
    """
    import cv2
    from torch.utils.data import DataLoader

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        return iter(DataLoader(batches, batch_size=None, num_workers=workers, prefetch_factor=4))
    finally:
        cv2.setNumThreads(threads)


def in_worker() -> None:
    """Call first in a worker process: one thread, and Ctrl-C, which a terminal sends to all, is left to the parent."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Clock:
    """Progress of a stage: the share of its steps or of its minutes, whichever is larger."""

    def __init__(self, steps: int, seconds: float) -> None:
        self.steps, self.seconds, self.begun = steps, seconds, time.monotonic()

    def share(self, step: int) -> float:
        by_time = (time.monotonic() - self.begun) / self.seconds if self.seconds else 0.0
        return max(step / self.steps if self.steps else 1.0, by_time)


class Means(dict[str, float]):
    """Running means of loss terms by name. decay: weight of the past, per step."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    def add(self, terms: Mapping[str, float], skip_zero: bool = False) -> None:
        """The terms of one step. skip_zero: a term of exactly 0 was not trained in this step. Values that are not finite are left
        out: one bad batch must not spoil the mean."""
        for name, value in terms.items():
            if math.isfinite(value) and not (skip_zero and value == 0):
                self[name] = self.decay * self.get(name, value) + (1 - self.decay) * value


def resumable(step: int, folder: str) -> str:
    """What a user reads when a signal has ended a run."""
    return f"step {step} is in {shown(folder)}: continue with --resume"


def save_state(path: str, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint atomically. Raises OutputError."""
    import torch

    with whole_file(path) as stream:
        torch.save(dict(state), stream)


def load_state(path: str) -> dict[str, Any]:
    """A checkpoint, on the CPU. Raises CheckpointError if there is none, or it is damaged."""
    import torch

    if not os.path.isfile(path):
        raise CheckpointError(
            f"no training checkpoint {path}: name the folder that an earlier run wrote, or leave --resume out"
        )
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state.keys()
    except Exception as error:  # torch raises many kinds of exceptions for damaged files
        raise CheckpointError(
            f"cannot read the training checkpoint {path}, it is damaged: leave --resume out to start again"
        ) from error
    return state


def load_state_of(path: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint of an earlier run with the same `settings`, options by name, and companions.FINGERPRINT, which earlier versions did
    not write. Raises CheckpointError."""
    state = load_state(path)
    before = state.get("settings", {})
    if other := [
        f"--{k.replace('_', '-')} {before.get(k)}, not {v}"
        for k, v in settings.items()
        if before.get(k) != v and k != FINGERPRINT
    ]:
        raise CheckpointError(
            f"{path} is of a run with {', '.join(other)}: give the same, or leave --resume out to start again"
        )
    ours, theirs = settings.get(FINGERPRINT), before.get(FINGERPRINT)
    if theirs not in (None, ours):
        raise CheckpointError(
            f"{path} is of a run with other weights of the name {before.get(WEIGHTS)} (fingerprint {theirs}, not {ours}): give those with "
            f"--weights, or leave --resume out to start again"
        )
    return state


def write_log(folder: str, content: Any) -> None:
    """log.json in the output folder, atomically. Raises OutputError."""
    with whole_file(os.path.join(folder, "log.json")) as stream:
        stream.write(json.dumps(content, indent=1).encode())
