"""What all training loops share."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, IterableDataset

from come_ros.training.loop import in_worker, workers_ended


class Slow(IterableDataset):
    def __iter__(self) -> Iterator[torch.Tensor]:
        in_worker()
        os.kill(os.getpid(), signal.SIGINT)  # as a terminal does
        yield torch.zeros(1)
        time.sleep(600)  # a batch in the making


def test_workers_are_told_to_go() -> None:
    with workers_ended():
        batches = iter(DataLoader(Slow(), batch_size=None, num_workers=1))
        assert next(batches) == 0
        (worker,) = multiprocessing.active_children()
    worker.join(60)
    assert worker.exitcode == 0


def test_workers_of_others_stay() -> None:
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    other.start()
    try:
        with workers_ended():
            pass
        other.join(0.2)
        assert other.is_alive()
    finally:
        other.kill()
        other.join()
