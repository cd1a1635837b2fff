"""Point errors by hand, against brute force, and on planes whose normals are known."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from come_ros import geometry
from come_ros.evaluation import point_errors, window_point_errors, world_points
from come_ros.evaluation.points import map_normals


def test_distances_by_hand() -> None:
    e = point_errors(np.array([[0.0, 0, 0], [1, 0, 0]]), np.array([[0.0, 0, 0], [1, 0, 2], [5, 0, 0]]))
    assert e.accuracy == pytest.approx((0 + 1) / 2)
    assert e.completeness == pytest.approx((0 + 2 + 4) / 3)
    assert e.chamfer == pytest.approx((0.5 + 2) / 2)
    assert np.isnan(point_errors(np.empty((0, 3)), np.ones((1, 3))).chamfer)


def test_distances_and_normals_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((80, 3)), rng.standard_normal((50, 3))
    na, nb = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.standard_normal((2, 80, 3)))
    nb = nb[:50]
    distance = np.linalg.norm(a[:, None] - b[None], axis=2)
    e = point_errors(a, b, na, nb)
    assert e.accuracy == pytest.approx(distance.min(axis=1).mean())
    assert e.completeness == pytest.approx(distance.min(axis=0).mean())
    forth = np.abs((na * nb[distance.argmin(axis=1)]).sum(axis=1)).mean()
    back = np.abs((nb * na[distance.argmin(axis=0)]).sum(axis=1)).mean()
    assert e.normal_consistency == pytest.approx((forth + back) / 2)


def slanted_plane(height=24, width=32):
    """A point map (1, H, W, 3) of a plane, its normal, and the camera's (1, 3, 3)."""
    k = np.array([[30.0, 0, 15.5], [0, 30, 11.5], [0, 0, 1]])[None]
    normal = np.array([0.3, -0.2, -1.0]) / np.linalg.norm([0.3, -0.2, -1.0])
    rays = geometry.unproject(np.ones((1, height, width)), k)
    depth = -2.0 / (rays @ normal)
    return world_points(depth, k, np.eye(4)[None]), normal, depth, k


def test_normals_of_a_plane() -> None:
    points, normal, _, _ = slanted_plane()
    found = map_normals(points)
    assert np.allclose(np.abs(found @ normal), 1, atol=1e-9)
    points[0, 5, 5] = np.nan
    assert np.isnan(map_normals(points)[0, 5, 4]).all() and np.isnan(map_normals(points)[0, 4, 5]).all()


def test_world_scale_and_frame_are_free_but_shape_is_not() -> None:
    points, _, depth, k = slanted_plane()
    rotation = Rotation.from_rotvec([0.2, 1, -0.5]).as_matrix()
    moved = 0.3 * points @ rotation.T + [5, 6, 7]
    moved[0, 0, :4] = np.nan
    e = window_point_errors(moved, points)
    # points that have no partner pixel are left out on both sides
    assert e.chamfer < 1e-9 and e.normal_consistency == pytest.approx(1)
    k_wrong = k.copy()
    k_wrong[:, 0, 0] *= 1.3
    bent = window_point_errors(world_points(depth, k_wrong, np.eye(4)[None]), points)
    assert bent.chamfer > 0.01
    assert np.isnan(window_point_errors(np.full_like(points, np.nan), points).accuracy)


def test_poses_place_the_points() -> None:
    k = np.tile(np.array([[10.0, 0, 1], [0, 10, 1], [0, 0, 1]]), (2, 1, 1))
    poses = np.stack([np.eye(4), geometry.transform(Rotation.from_rotvec([0, np.pi / 2, 0]).as_matrix(), [1, 2, 3])])
    points = world_points(np.full((2, 3, 3), 2.0), k, poses)
    assert points[0, 1, 1] == pytest.approx([0, 0, 2]) and points[1, 1, 1] == pytest.approx([3, 2, 3])
    assert points[0, 1, 2] == pytest.approx([0.2, 0, 2])
