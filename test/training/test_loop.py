"""What all training loops share."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch.utils.data import IterableDataset

from come_ros.training.loop import in_worker, made_by_workers, workers_ended


def flow() -> None:
    """Uses OpenCV's threads."""
    noise = np.random.default_rng(0).integers(0, 255, (480, 640), np.uint8)
    points = np.random.default_rng(1).uniform(50, 400, (500, 1, 2)).astype(np.float32)
    cv2.calcOpticalFlowPyrLK(noise, noise, points, None)  # type: ignore[call-overload]


class Slow(IterableDataset):
    def __iter__(self) -> Iterator[torch.Tensor]:
        in_worker()
        flow()
        os.kill(os.getpid(), signal.SIGINT)  # as a terminal does
        yield torch.tensor(cv2.getNumThreads())
        time.sleep(600)  # a batch in the making


def test_workers_are_told_to_go() -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        flow()  # OpenCV's threads, which do not survive a fork, exist
        with workers_ended():
            batches = made_by_workers(Slow(), 1)
            assert next(batches) == 1
            (worker,) = set(multiprocessing.active_children())
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)
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
