"""The readout time of a rolling shutter comes back from tracked points, is not invented, and takes the bend out of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from come_ros.geometry import inverse, rotation_from_vector, transform
from come_ros.tracking.shutter import FIRM, Shutter

F64 = np.ndarray
SHAPE = 240, 320
K = np.array([[260.0, 0, 159.5], [0, 260.0, 119.5], [0, 0, 1.0]])
START_NS = 1_700_000_000_000_000_000


def shaken(t: F64) -> F64:
    """A hand that turns a camera, about a point behind it."""
    turn = rotation_from_vector(
        np.stack([0.4 * np.sin(3.1 * t), 0.5 * np.sin(2.3 * t + 1), 0.25 * np.sin(2.7 * t)], axis=1)
    )
    return transform(turn, turn @ [0.05, 0.0, 0.1])


def driven(t: F64) -> F64:
    """A car that speeds up and brakes, hardly turning."""
    turn = rotation_from_vector(t[:, None] * [0, 0.02, 0])
    return transform(turn, np.stack([0.1 * np.sin(t), 0 * t, 1.5 * t - 1.4 * np.sin(t)], axis=1))


def images(
    path: Callable[[F64], F64], readout_s: float, count: int, hz: float = 15.0, noise: float = 0.3, points: int = 1500
) -> Iterator[tuple[int, F64, F64, F64]]:
    """Stamp, ids, pixels of a rolling shutter with noise, and those of a global one without, of points around the camera."""
    rng = np.random.default_rng(3)
    rays = rng.normal(size=(points, 3))
    world = rays / np.linalg.norm(rays, axis=1, keepdims=True) * rng.uniform(1.5, 4.0, (points, 1))
    world += path(rng.uniform(0, count / hz, points))[:, :3, 3]  # along all of the path

    def seen(at: F64) -> F64:
        away = inverse(path(at))
        y = np.einsum("nij,nj->ni", away[:, :3, :3], world) + away[:, :3, 3]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(y[:, 2:] > 0.3, y[:, :2] / y[:, 2:] * K[0, 0] + K[:2, 2], np.nan)

    for i in range(count):
        t = i / hz
        steady = rolling = seen(np.full(points, t))
        for _ in range(4 if readout_s else 0):
            rows = np.nan_to_num(rolling[:, 1], nan=119.5)
            rolling = seen(t + readout_s * ((rows + 0.5) / SHAPE[0] - 0.5))
        inside = (np.nan_to_num(rolling, nan=-1) >= 0).all(axis=1) & (rolling < SHAPE[::-1]).all(axis=1)
        ids = np.flatnonzero(inside & np.isfinite(steady).all(axis=1))
        yield START_NS + round(t * 1e9), ids, rolling[ids] + rng.normal(0, noise, (len(ids), 2)), steady[ids]


def run(shutter: Shutter, stream: Iterator[tuple[int, F64, F64, F64]], k: F64 | None = K) -> list[tuple[float, float]]:
    """Median distances from where a global shutter sees the points, as they are and as corrected, of each image."""
    off = []
    for stamp, ids, pixels, steady in stream:
        at_once = shutter.at_once(ids, pixels, SHAPE, stamp, k)
        errors = (np.linalg.norm(p - steady, axis=1) for p in (pixels, pixels if at_once is None else at_once))
        off.append(tuple(float(np.median(e)) for e in errors))
    return off  # type: ignore[return-value]


@pytest.mark.parametrize("readout_s", [0.025, -0.015])
def test_the_readout_time_comes_back(readout_s: float) -> None:
    shutter = Shutter()
    off = np.array(run(shutter, images(shaken, readout_s, 60)))
    assert shutter.readout_s == pytest.approx(readout_s, abs=0.003)
    value, sigma = shutter.estimate
    assert abs(value - readout_s) < 4 * sigma + 0.001
    assert np.median(off[-20:, 1]) < 0.5 * np.median(off[-20:, 0])


@pytest.mark.parametrize(("path", "noise"), [(shaken, 0.3), (shaken, 1.0), (driven, 0.3)])
def test_a_global_shutter_stays_one(path: Callable[[F64], F64], noise: float) -> None:
    shutter = Shutter()
    assert all(before == after for before, after in run(shutter, images(path, 0.0, 60, noise=noise)))
    assert shutter.readout_s == 0.0 and abs(shutter.estimate[0]) < FIRM * shutter.estimate[1]


def test_it_is_given_up_where_later_images_contradict(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([-0.012] * 26 + [0.004] * 40)
    monkeypatch.setattr("come_ros.tracking.shutter._readout", lambda *_: (next(said), 1 / 0.012**2))
    shutter, used = Shutter(), []
    for stamp, ids, pixels, _ in images(shaken, 0.0, 120, points=900):
        shutter.at_once(ids, pixels, SHAPE, stamp, K)
        used.append(shutter.readout_s)
    assert min(used) == pytest.approx(-0.012) and used[0] == used[-1] == 0.0 and shutter.estimate[1] < 0.002


def test_one_that_is_known_needs_no_intrinsics() -> None:
    off = np.array(run(Shutter(0.025), images(shaken, 0.025, 20), None))
    assert np.median(off[3:, 1]) < 0.5 * np.median(off[3:, 0])
    nothing = Shutter()
    run(nothing, images(shaken, 0.025, 20), None)
    assert nothing.readout_s == 0.0 and nothing.estimate == (0.0, np.inf)
    assert Shutter(0.0).at_once(np.arange(50), np.ones((50, 2)), SHAPE, START_NS, K) is None


def test_where_there_is_no_motion_to_go_by_pixels_stay() -> None:
    shutter = Shutter(0.025)
    (a, ids, pixels, _), (b, *_), (c, *_) = images(shaken, 0.025, 3)
    assert shutter.at_once(ids, pixels, SHAPE, a, K) is None  # the first image
    assert shutter.at_once(ids, pixels, SHAPE, a, K) is None  # the same stamp
    assert shutter.at_once(ids[:5], pixels[:5], SHAPE, b, K) is None  # few points
    assert shutter.at_once(ids, pixels, SHAPE, c + 10**9, K) is None  # a second later
    still = shutter.at_once(ids, pixels, SHAPE, c + 10**9 + 10**8, K)
    np.testing.assert_allclose(still, pixels, atol=1e-6)
    shutter.reset()
    assert shutter.at_once(ids, pixels, SHAPE, c + 10**9 + 2 * 10**8, K) is None
    empty = np.empty(0, np.int64), np.empty((0, 2))
    assert shutter.at_once(*empty, SHAPE, c + 10**9 + 3 * 10**8, K) is None
