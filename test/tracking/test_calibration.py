"""The covariances of odometry tell how wrong it is: in rooms and in a recording, with the measure of the benchmark that fits them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from benchmark.accuracy.covariance import Constants, Run, of_run, recorded, rendered, watched

KINDS = ("since start", "in a second", "twist")


@pytest.fixture(scope="module")
def normalised(shared_data: Path) -> list[dict[str, float]]:
    """Median NEES per degree of freedom of each kind, in two rooms and in a recording."""
    sources = {"test 20000740 at 10 Hz": rendered(20_000_740, 10.0, 48), "test 20000745 at 3.3 Hz": rendered(20_000_745, 3.3, 40),
               "rpy": recorded("rpy")}  # fmt: skip
    return [of_run(Run(name, watched(frames) | truth), Constants()) for name, (frames, truth) in sources.items()]


@pytest.mark.slow
def test_covariances_are_neither_too_sure_nor_too_unsure(normalised: list[dict[str, float]]) -> None:
    every = [row[kind] for row in normalised for kind in KINDS if kind in row]
    assert len(every) == 8, "a velocity is not measured at 3.3 Hz"
    # the constants serve recordings too, whose errors are the larger ones: rooms alone come to about 0.5
    assert 0.4 <= np.median(every) <= 2.0
    # one recording is hardly more than one draw, but what is off by more than that is wrong
    assert min(every) > 0.03 and max(every) < 30


def test_what_is_twice_as_unsure_is_seen() -> None:
    """The measure itself: errors drawn from the covariances that are claimed, and from twice as large ones."""
    rng = np.random.default_rng(0)
    stamps = np.arange(400) * 100_000_000
    for factor in (1.0, 2.0):
        steps = rng.normal(0, 0.01, (400, 3))
        steps[0] = 0  # truth and path agree there
        truth = np.tile(np.eye(4), (400, 1, 1))
        truth[:, :3, 3] = np.cumsum(rng.normal(0, 0.3, (400, 3)), axis=0)
        poses = truth.copy()
        poses[:, :3, 3] += factor * steps
        own = np.tile(np.diag([1e-4] * 6), (400, 1, 1))
        arrays = {
            "truth_stamps": stamps, "truth_poses": truth, "image_stamp": stamps, "image_pose": poses, "image_own": own,
            "image_window": np.zeros(400, np.int64), "image_twist": np.zeros((400, 6)),
            "image_twist_covariance": np.tile(9999.0 * np.eye(6), (400, 1, 1)), "image_lost": np.zeros(400, bool),
            "window_stamp": stamps[:1], "window_refined": np.ones(1, bool), "window_first": poses[:1], "window_added": np.zeros((1, 6, 6)),
            "window_pose": poses[:1], "made_with": np.array(dataclasses.astuple(Constants())),
        }  # fmt: skip
        found = of_run(Run("a room", arrays), Constants())["since start"]
        # the rotation is exact, so that three of six coordinates err
        assert found == pytest.approx(0.5 * 0.79 * factor**2, rel=0.25)
