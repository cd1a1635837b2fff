"""The offset of two clocks comes back to some milliseconds, also from a path of another unit, and is refused where nothing tells it."""

from __future__ import annotations

import numpy as np
import pytest

from come_ros.errors import DatasetError
from come_ros.evaluation.clock_offset import find_offset
from come_ros.geometry import rotation_from_vector, transform

EPOCH = 1_300_000_000_000_000_000


def pose(t: float) -> np.ndarray:
    """A hand-held camera: no two seconds alike."""
    turn = [
        0.5 * np.sin(1.3 * t) + 0.2 * np.sin(4.1 * t * (1 + 0.02 * t)),
        0.4 * np.sin(0.7 * t + 1) ** 3,
        0.1 * np.cos(2.9 * t),
    ]
    return transform(
        rotation_from_vector(turn), [np.sin(0.9 * t) + 0.3 * np.sin(3.3 * t + 0.1 * t * t), 0.2 * t, np.cos(1.7 * t)]
    )


@pytest.mark.parametrize("offset_s", [1_300_000_000.25, -3.5, 0.0])
@pytest.mark.parametrize("hz", [3.0, 20.0])
def test_it_comes_back(offset_s: float, hz: float) -> None:
    rng = np.random.default_rng(0)
    offset = round(offset_s * 1e9)
    truth = {round(t * 1e9) + 10**10: pose(t) for t in np.arange(0, 40, 0.01)}
    images = np.arange(6.0, 30.0, 1 / hz)
    estimate = {}
    for t in images:
        seen = pose(t) @ transform(rotation_from_vector(rng.normal(0, 0.003, 3)), np.zeros(3))
        seen[:3, 3] *= 0.03  # another unit
        estimate[round(t * 1e9) + 10**10 + offset] = seen
    found = find_offset(estimate, truth)
    assert abs(found.ns - offset) < 0.02e9 and found.correlation > 0.9


@pytest.mark.filterwarnings("error")
def test_nothing_is_made_up() -> None:
    truth = {i * 10**8: pose(i / 10) for i in range(200)}
    still = {i * 10**8: np.eye(4) for i in range(50)}
    with pytest.raises(DatasetError, match=r"at none do enough .* speeds that vary .* give the offset in seconds"):
        find_offset(still, truth)
    seconds = {t: truth[t] for t in list(truth)[:30]}  # too short for any offset
    with pytest.raises(DatasetError, match="at none do enough images lie within"):
        find_offset({t: pose(t * 1e-9) for t in range(0, 10**11, 10**9)}, seconds)
    with pytest.raises(DatasetError, match="more than 8 poses"):
        find_offset(dict(list(truth.items())[:5]), truth)
    circle = {i * 10**8: transform(rotation_from_vector([0, 0, 0.1 * i]), np.zeros(3)) for i in range(100)}
    with pytest.raises(DatasetError, match="found no offset"):
        find_offset(circle, circle)


def test_paths_at_the_stamps_of_the_images_fall_onto_them() -> None:
    rng = np.random.default_rng(1)
    stamps = np.cumsum(rng.uniform(0.06, 0.08, 80))
    truth = {round(t * 1e9): pose(t) for t in stamps}
    estimate = {
        round(t * 1e9) + EPOCH: pose(t) @ transform(rotation_from_vector(rng.normal(0, 0.02, 3)), np.zeros(3))
        for t in stamps[5:70]
    }
    assert abs(find_offset(estimate, truth).ns - EPOCH) < 1000
