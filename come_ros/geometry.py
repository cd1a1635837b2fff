"""Rigid and similarity transforms, quaternions and pinhole cameras: pure functions on arrays.

Transforms are float64 (..., 4, 4) matrices `target_from_source`; leading axes are batches. Pixel centres lie at whole
numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]

# REP 103: body axes are x forward, y left, z up; optical axes x right, y down, z forward.
BODY_FROM_OPTICAL: F64 = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
OPTICAL_FROM_BODY: F64 = BODY_FROM_OPTICAL.T.copy()
BODY_FROM_OPTICAL.setflags(write=False)
OPTICAL_FROM_BODY.setflags(write=False)


def transform(rotation: ArrayLike, translation: ArrayLike) -> F64:
    """(..., 4, 4) transform of a rotation (..., 3, 3) and a translation (..., 3)."""
    rotation, translation = np.asarray(rotation, np.float64), np.asarray(translation, np.float64)
    out = np.zeros(np.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1]) + (4, 4))
    out[..., :3, :3] = rotation
    out[..., :3, 3] = translation
    out[..., 3, 3] = 1.0
    return out


def inverse(target_from_source: ArrayLike) -> F64:
    """source_from_target of rigid transforms (..., 4, 4), exactly rigid again."""
    pose = np.asarray(target_from_source, np.float64)
    rotation = np.swapaxes(pose[..., :3, :3], -1, -2)
    return transform(rotation, -(rotation @ pose[..., :3, 3:])[..., 0])


def apply(target_from_source: ArrayLike, points: ArrayLike) -> F64:
    """Points (..., 3) of the source frame, in the target frame; one transform (4, 4) for all of them."""
    pose = np.asarray(target_from_source, np.float64)
    return np.asarray(points) @ pose[:3, :3].T + pose[:3, 3]


def rotation_angle(rotation: ArrayLike) -> F64:
    """Angle of rotations (..., 3, 3) in rad, 0 .. pi; accurate at both ends, which an arc cosine is not."""
    r = np.asarray(rotation, np.float64)
    axis = np.stack([r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]], axis=-1)
    return np.arctan2(np.linalg.norm(axis, axis=-1), np.trace(r, axis1=-2, axis2=-1) - 1.0)


def skew(vector: ArrayLike) -> F64:
    """(..., 3, 3) cross product matrices of vectors (..., 3): skew(a) @ b = a x b."""
    v = np.asarray(vector, np.float64)
    out = np.zeros((*v.shape, 3))
    out[..., 0, 1], out[..., 0, 2], out[..., 1, 2] = -v[..., 2], v[..., 1], -v[..., 0]
    out[..., 1, 0], out[..., 2, 0], out[..., 2, 1] = v[..., 2], -v[..., 1], v[..., 0]
    return out


def rotation_from_vector(vector: ArrayLike) -> F64:
    """(..., 3, 3) rotations about the axis of `vector` (..., 3) by its length in rad (Rodrigues)."""
    v = np.asarray(vector, np.float64)
    angle = np.linalg.norm(v, axis=-1)[..., None, None]
    k = skew(v)
    # np.sinc is sin(pi x) / (pi x): no special case at zero
    return np.eye(3) + np.sinc(angle / np.pi) * k + 0.5 * np.sinc(angle / (2 * np.pi)) ** 2 * (k @ k)


def vector_from_rotation(rotation: ArrayLike) -> F64:
    """(..., 3) axis times angle (rad, at most pi) of rotations (..., 3, 3): the inverse of `rotation_from_vector`."""
    q = quat_xyzw_from_matrix(rotation)
    sine = np.linalg.norm(q[..., :3], axis=-1)
    angle = 2.0 * np.arctan2(sine, q[..., 3])
    return q[..., :3] * np.where(sine > 1e-12, angle / np.where(sine > 1e-12, sine, 1.0), 2.0)[..., None]


def matrix_from_quat_xyzw(quat_xyzw: ArrayLike) -> F64:
    """Rotations (..., 3, 3) of quaternions (..., 4) of any length. Raises ValueError if one is zero or not finite."""
    q = np.asarray(quat_xyzw, np.float64)
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    if not np.all(np.isfinite(norm) & (norm > 1e-12)):
        raise ValueError("a quaternion is zero or not finite, so it is not a rotation")
    x, y, z, w = np.moveaxis(q / norm, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quat_xyzw_from_matrix(rotation: ArrayLike) -> F64:
    """Unit quaternions (..., 4) with w >= 0 of rotations (..., 3, 3) or the rotation part of transforms (..., 4, 4)."""
    r = np.asarray(rotation, np.float64)[..., :3, :3]
    xx, yy, zz = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    a, b, c = r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]
    d, e, f = r[..., 1, 0] + r[..., 0, 1], r[..., 0, 2] + r[..., 2, 0], r[..., 2, 1] + r[..., 1, 2]
    # four times the outer product q q^T: each row is the quaternion times one of its components; take the longest
    outer = np.stack(
        [
            np.stack([1 + xx - yy - zz, d, e, a], axis=-1),
            np.stack([d, 1 - xx + yy - zz, f, b], axis=-1),
            np.stack([e, f, 1 - xx - yy + zz, c], axis=-1),
            np.stack([a, b, c, 1 + xx + yy + zz], axis=-1),
        ],
        axis=-2,
    )
    best = np.argmax(np.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    q = np.take_along_axis(outer, best[..., None, None], axis=-2)[..., 0, :]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    return np.where(q[..., 3:] < 0, -q, q)


def nearest_rotation(matrix: ArrayLike) -> F64:
    """The rotations (..., 3, 3) closest to `matrix` (..., 3, 3) in the Frobenius norm."""
    u, _, vt = np.linalg.svd(np.asarray(matrix, np.float64))
    flip = np.ones(u.shape[:-1])
    flip[..., 2] = np.where(np.linalg.det(u) * np.linalg.det(vt) < 0, -1.0, 1.0)
    return (u * flip[..., None, :]) @ vt


def average_rotation(rotations: ArrayLike, weights: ArrayLike | None = None) -> F64:
    """Weighted chordal mean (3, 3) of rotations (N, 3, 3): the least squares of Frobenius distances."""
    rotations = np.asarray(rotations, np.float64)
    w = np.ones(len(rotations)) if weights is None else np.asarray(weights, np.float64)
    return nearest_rotation(np.tensordot(w, rotations, axes=1) / w.sum())


def is_finite_pose(target_from_source: ArrayLike, tolerance: float = 1e-2) -> NDArray[np.bool_]:
    """(...,) bool: whether transforms (..., 4, 4) are finite and rigid, up to `tolerance` in R^T R."""
    pose = np.asarray(target_from_source, np.float64)
    finite = np.all(np.isfinite(pose), axis=(-1, -2))
    r = np.where(finite[..., None, None], pose, np.eye(4))[..., :3, :3]
    unit = np.abs(np.swapaxes(r, -1, -2) @ r - np.eye(3)).max(axis=(-1, -2)) <= tolerance
    return finite & unit & (np.linalg.det(r) > 0)


def transform_poses(scale: float, rotation: ArrayLike, translation: ArrayLike, poses: ArrayLike) -> F64:
    """Poses (..., 4, 4) after the similarity x -> scale * rotation @ x + translation of their world: still rigid."""
    poses, rotation = np.asarray(poses, np.float64), np.asarray(rotation, np.float64)
    position = scale * (poses[..., :3, 3] @ rotation.T) + np.asarray(translation, np.float64)
    return transform(rotation @ poses[..., :3, :3], position)


def umeyama(
    source: ArrayLike, target: ArrayLike, with_scale: bool = True, weights: ArrayLike | None = None
) -> tuple[float, F64, F64]:
    """Scale, rotation (3, 3) and translation (3,) that take `source` (N, 3) to `target` (N, 3) in least squares.

    Umeyama, PAMI 1991, eq. 40-43. Collinear or coincident points do not determine the whole rotation: any solution is returned; if
    the source has no extent, the scale is 1.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    w = np.ones(len(source)) if weights is None else np.asarray(weights, np.float64)
    w = w / w.sum()
    mean_source, mean_target = w @ source, w @ target
    a, b = source - mean_source, target - mean_target
    u, d, vt = np.linalg.svd((b * w[:, None]).T @ a)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0])
    rotation = (u * sign) @ vt
    variance = float(w @ (a * a).sum(axis=1))
    scale = float(d @ sign) / variance if with_scale and variance > 1e-18 else 1.0
    return scale, rotation, mean_target - scale * rotation @ mean_source


def unproject(depth: ArrayLike, intrinsics: ArrayLike) -> NDArray[np.floating]:
    """Points (..., H, W, 3) in the optical frame, of z-depth (..., H, W) and intrinsics (..., 3, 3); dtype of depth."""
    z = np.asarray(depth)
    k = np.asarray(intrinsics, np.float64)[..., None, None]  # (..., 3, 3, 1, 1)
    height, width = z.shape[-2:]
    x_of_z = ((np.arange(width) - k[..., 0, 2, :, :]) / k[..., 0, 0, :, :]).astype(z.dtype)  # (..., 1, W)
    y_of_z = ((np.arange(height)[:, None] - k[..., 1, 2, :, :]) / k[..., 1, 1, :, :]).astype(z.dtype)  # (..., H, 1)
    out = np.empty(z.shape + (3,), z.dtype)
    np.multiply(z, x_of_z, out=out[..., 0])
    np.multiply(z, y_of_z, out=out[..., 1])
    out[..., 2] = z
    return out


def project(points: ArrayLike, intrinsics: ArrayLike) -> F64:
    """Pixels (..., 2) of points (..., 3) in the optical frame; NaN for points that are not in front of the camera."""
    points, k = np.asarray(points, np.float64), np.asarray(intrinsics, np.float64)
    z = np.where(points[..., 2:] > 0, points[..., 2:], np.nan)
    return points[..., :2] / z * np.array([k[0, 0], k[1, 1]]) + k[:2, 2]


SIGMA_OF_MAD = 1.4826
"""standard deviation of a Gaussian, in its median absolute deviations"""


def finite_median(values: ArrayLike, otherwise: float) -> float:
    """Median of the finite values; `otherwise` if there are none."""
    values = np.asarray(values)
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else otherwise


def right_jacobian_inverse(vectors: ArrayLike) -> F64:
    """(N, 3, 3) J of rotation vectors v (N, 3), with log(exp(v) exp(d)) = v + J d for small d. Sola et al., arXiv 1812.01537, eq. 144."""
    v = np.asarray(vectors, np.float64)
    angle = np.linalg.norm(v, axis=1)
    small = angle < 1e-4
    safe = np.where(small, 1.0, angle)
    second = np.where(
        small, 1 / 12 + angle**2 / 720, 1 / safe**2 - (1 + np.cos(safe)) / (2 * safe * np.maximum(np.sin(safe), 1e-9))
    )
    cross = skew(v)
    return np.asarray(np.eye(3) + 0.5 * cross + second[:, None, None] * (cross @ cross), np.float64)
