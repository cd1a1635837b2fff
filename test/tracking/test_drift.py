"""How errors grow along the chain of windows, against draws of such errors."""

from __future__ import annotations

import numpy as np
import pytest

from come_ros.geometry import rotation_from_vector, transform
from come_ros.tracking import drift
from come_ros.tracking.drift import Drift, by_bundle, by_network, carried
from come_ros.types import Alignment

WINDOWS, DRAWS = 6, 40_000
RNG = np.random.default_rng(0)
POSES = [transform(rotation_from_vector([0.0, 0.1 * i, 0.0]), [0.4 * i, 0.1 * i**2, 0.0]) for i in range(WINDOWS + 1)]


def a_covariance() -> np.ndarray:
    root = RNG.normal(0, 0.01, (6, 6))
    return root @ root.T


ADDED = [a_covariance() for _ in range(WINDOWS)]


def chained(added: list[np.ndarray]) -> Drift:
    chain = Drift()
    for i, covariance in enumerate(added):
        new = POSES[i + 1][None] if i else np.stack(POSES[:2])
        chain.add(new, covariance)
    return chain


def test_the_covariance_is_that_of_errors_drawn_so() -> None:
    found, rng = chained(ADDED).covariance, np.random.default_rng(1)
    total = np.zeros((DRAWS, 6))
    for i, covariance in enumerate(ADDED):
        way = POSES[i + 1][:3, 3] - POSES[i][:3, 3]
        own = covariance.copy()
        own[:3, :3] += drift.UNIT_SHARE**2 * np.outer(way, way)
        values, vectors = np.linalg.eigh(own)
        root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
        total[:, :3] += np.cross(total[:, 3:], way)  # a wrong rotation moves what comes after it
        total += rng.normal(size=(DRAWS, 6)) @ root.T
    drawn = total.T @ total / DRAWS
    scale = np.sqrt(np.diag(drawn))
    assert np.abs((found - drawn) / np.outer(scale, scale)).max() < 0.03


def test_it_only_grows_and_is_a_covariance() -> None:
    before = np.zeros(6)
    for count in range(1, WINDOWS + 1):
        found = chained(ADDED[:count]).covariance
        np.testing.assert_allclose(found, found.T, atol=1e-15)
        assert np.linalg.eigvalsh(found).min() > 0
        assert (np.diag(found)[3:] > before[3:]).all(), "of rotation"
        assert np.trace(found) > before.sum()
        before = np.diag(found)


def test_the_solver_is_believed_less_than_it_says() -> None:
    np.testing.assert_allclose(by_bundle(ADDED[0]), drift.UNDERSTATED**2 * ADDED[0])
    assert drift.UNDERSTATED > 1


def test_without_a_bundle_a_window_adds_more_the_worse_it_fits() -> None:
    well = Alignment(
        accepted=True, shared=4, scale=1.0, rotation_residual=0.01, translation_residual=0.01, depth_residual=0.01
    )
    badly = Alignment(
        accepted=True, shared=4, scale=1.0, rotation_residual=0.5, translation_residual=0.5, depth_residual=0.5
    )
    a, b = (np.diag(by_network(each, 3.0)) for each in (well, badly))
    assert (b > 2 * a).all() and a[0] == pytest.approx(9 * by_network(well, 1.0)[0, 0])


def test_a_wrong_rotation_moves_what_lies_far_away() -> None:
    found = carried(np.diag([0, 0, 0, 0, 0, 0.01**2]), np.array([2.0, 0, 0]))
    assert found[1, 1] == pytest.approx(0.02**2) and found[0, 0] == found[2, 2] == 0
