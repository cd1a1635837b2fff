import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from come_ros import geometry

angles = st.floats(-np.pi, np.pi)
vectors = st.tuples(*[st.floats(-10, 10)] * 3).map(np.array)
rotations = st.tuples(*[st.floats(-2, 2)] * 3).map(geometry.rotation_from_vector)
poses = st.builds(geometry.transform, rotations, vectors)


def test_optical_axes_become_body_axes():
    forward, right, down = [0, 0, 1], [1, 0, 0], [0, 1, 0]
    assert np.allclose(
        geometry.apply(geometry.BODY_FROM_OPTICAL, [forward, right, down]), [[1, 0, 0], [0, -1, 0], [0, 0, -1]]
    )
    assert np.array_equal(geometry.OPTICAL_FROM_BODY @ geometry.BODY_FROM_OPTICAL, np.eye(4))
    with pytest.raises(ValueError):
        geometry.BODY_FROM_OPTICAL[0, 0] = 1


@settings(max_examples=30, deadline=None)
@given(poses, poses)
def test_inverse_undoes(a, b):
    assert np.allclose(a @ b @ geometry.inverse(b) @ geometry.inverse(a), np.eye(4), atol=1e-9)
    assert np.allclose(geometry.inverse(np.stack([a, b]))[1], np.linalg.inv(b), atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(rotations)
def test_quaternions_return_the_rotation(rotation):
    quat = geometry.quat_xyzw_from_matrix(rotation)
    assert quat[3] >= 0 and np.isclose(np.linalg.norm(quat), 1)
    assert np.allclose(geometry.matrix_from_quat_xyzw(3 * quat), rotation, atol=1e-9)


def test_quaternions_at_half_turns_and_in_batches():
    turns = np.stack([np.eye(3), np.diag([1.0, -1, -1]), np.diag([-1.0, 1, -1]), np.diag([-1.0, -1, 1])])
    quats = geometry.quat_xyzw_from_matrix(turns)
    assert np.allclose(np.abs(quats), np.eye(4)[[3, 0, 1, 2]])
    assert np.allclose(geometry.matrix_from_quat_xyzw(quats), turns)
    with pytest.raises(ValueError, match="zero or not finite"):
        geometry.matrix_from_quat_xyzw([0, 0, 0, 0])


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.floats(0, 1e-6), st.floats(0, np.pi), st.floats(np.pi - 1e-6, np.pi)))
def test_rotation_angle_is_accurate_at_both_ends(angle):
    axis = np.array([0.36, 0.48, 0.8])
    assert abs(geometry.rotation_angle(geometry.rotation_from_vector(angle * axis)) - angle) < 1e-9


def test_average_rotation_is_weighted_and_a_rotation():
    turn = geometry.rotation_from_vector([0, 0, 0.2])
    assert np.isclose(geometry.rotation_angle(geometry.average_rotation([np.eye(3), turn])), 0.1)
    assert np.isclose(geometry.rotation_angle(geometry.average_rotation([np.eye(3), turn], [0, 1])), 0.2)
    mirrored = geometry.nearest_rotation(np.diag([1.0, 1.0, -1.0]))
    assert np.isclose(np.linalg.det(mirrored), 1)


def test_finite_poses_are_told_from_others():
    good, nan, sheared, mirror = np.tile(np.eye(4), (4, 1, 1))
    nan[0, 3], sheared[0, 1], mirror[0, 0] = np.nan, 0.2, -1
    assert geometry.is_finite_pose(np.stack([good, nan, sheared, mirror])).tolist() == [True, False, False, False]


@settings(max_examples=30, deadline=None)
@given(rotations, vectors, st.floats(0.1, 10), st.integers(0, 2**31))
def test_umeyama_finds_the_similarity(rotation, translation, scale, seed):
    source = np.random.default_rng(seed).normal(size=(20, 3))
    target = scale * source @ rotation.T + translation
    s, r, t = geometry.umeyama(source, target)
    assert np.isclose(s, scale) and np.allclose(r, rotation, atol=1e-8) and np.allclose(t, translation, atol=1e-7)
    s, _, _ = geometry.umeyama(source, target, with_scale=False)
    assert s == 1


@pytest.mark.parametrize("source", [np.zeros((5, 3)), np.outer(np.arange(5.0), [1, 2, 3])], ids=["one place", "a line"])
def test_umeyama_of_degenerate_points_still_fits_them(source):
    rotation = geometry.rotation_from_vector([0.3, -0.2, 0.5])
    s, r, t = geometry.umeyama(source, 2 * source @ rotation.T + 1)
    assert np.isclose(np.linalg.det(r), 1)
    assert np.allclose(s * source @ r.T + t, 2 * source @ rotation.T + 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_projection_undoes_unprojection(dtype):
    k = np.array([[50.0, 0, 9.5], [0, 60, 6.5], [0, 0, 1]])
    depth = np.random.default_rng(0).uniform(0.5, 5, (2, 14, 20)).astype(dtype)
    points = geometry.unproject(depth, np.stack([k, k]))
    assert points.dtype == dtype and points.shape == (2, 14, 20, 3)
    v, u = np.mgrid[:14, :20]
    assert np.allclose(geometry.project(points[1], k), np.stack([u, v], axis=-1), atol=1e-4)
    assert np.isnan(geometry.project([[0, 0, -1.0]], k)).all()


def test_similarity_moves_poses_and_keeps_them_rigid():
    pose = geometry.transform(geometry.rotation_from_vector([0, 0.1, 0]), [1, 2, 3])
    moved = geometry.transform_poses(2.0, geometry.rotation_from_vector([0, 0, np.pi / 2]), [1, 0, 0], pose)
    assert np.allclose(moved[:3, 3], [-3, 2, 6]) and geometry.is_finite_pose(moved)


def test_the_right_jacobian_inverse_is_the_derivative_of_the_logarithm() -> None:
    rng = np.random.default_rng(4)
    vectors = np.concatenate([rng.uniform(-1.5, 1.5, (20, 3)), 1e-6 * rng.standard_normal((5, 3)), np.zeros((1, 3))])
    d, step = np.eye(3), 1e-6
    turned = geometry.rotation_from_vector(vectors)[:, None] @ geometry.rotation_from_vector(step * d)
    found = (geometry.vector_from_rotation(turned) - vectors[:, None]) / step  # row i: J e_i
    np.testing.assert_allclose(geometry.right_jacobian_inverse(vectors), np.swapaxes(found, 1, 2), atol=2e-5)


def test_the_median_of_what_is_finite() -> None:
    assert geometry.finite_median([1.0, np.nan, 3.0, 9.0, np.inf], 7.0) == 3.0
    assert geometry.finite_median(np.full((2, 2), np.nan), 7.0) == 7.0
