"""Cameras in torch: rotations, rigid transforms, pinhole intrinsics, rays."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rotation_from_quaternion(quat_xyzw: Tensor) -> Tensor:
    """(..., 4) of any non-zero length -> (..., 3, 3)."""
    x, y, z, w = quat_xyzw.unbind(-1)
    s = 2 / quat_xyzw.square().sum(-1).clamp_min(1e-12)
    rows = (
        (1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)),
        (s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)),
        (s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)),
    )
    return torch.stack([torch.stack(r, dim=-1) for r in rows], dim=-2)


def quaternion_from_rotation(rotation: Tensor) -> Tensor:
    """(..., 3, 3) -> xyzw (..., 4) of length 1 with w >= 0."""
    m = rotation.flatten(-2).unbind(-1)
    # each row is the quaternion times twice one of its parts; the row of the largest part is the most exact
    rows = torch.stack(
        [
            torch.stack((1 + m[0] - m[4] - m[8], m[1] + m[3], m[2] + m[6], m[7] - m[5]), dim=-1),
            torch.stack((m[1] + m[3], 1 - m[0] + m[4] - m[8], m[5] + m[7], m[2] - m[6]), dim=-1),
            torch.stack((m[2] + m[6], m[5] + m[7], 1 - m[0] - m[4] + m[8], m[3] - m[1]), dim=-1),
            torch.stack((m[7] - m[5], m[2] - m[6], m[3] - m[1], 1 + m[0] + m[4] + m[8]), dim=-1),
        ],
        dim=-2,
    )
    best = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    quat = rows.gather(-2, best[..., None, None].expand(*best.shape, 1, 4))[..., 0, :]
    quat = quat / quat.norm(dim=-1, keepdim=True)
    return torch.where(quat[..., 3:] < 0, -quat, quat)


def rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    """(..., 3, 3) and (..., 3) -> (..., 4, 4)."""
    pose = torch.eye(4, dtype=rotation.dtype, device=rotation.device).expand(*rotation.shape[:-2], 4, 4).clone()
    pose[..., :3, :3], pose[..., :3, 3] = rotation, translation
    return pose


def invert_rigid(pose: Tensor) -> Tensor:
    """(..., 4, 4) -> its inverse, exactly rigid."""
    rt = pose[..., :3, :3].transpose(-1, -2)
    return rigid(rt, -(rt @ pose[..., :3, 3:])[..., 0])


def world_points(world_from_camera: Tensor, local: Tensor, frames: Sequence[int] | None = None) -> Tensor:
    """Points (B, n, H, W, 3) in the cameras of `frames` (None for all) among (B, S, 4, 4) -> the same in the world."""
    pose = world_from_camera[:, slice(None) if frames is None else list(frames), None, None]
    return (pose[..., :3, :3] @ local[..., None])[..., 0] + pose[..., :3, 3]


def pinhole(fx: Tensor, fy: Tensor, cx: Tensor | float, cy: Tensor | float) -> Tensor:
    """Focal lengths and principal point (...) -> intrinsics (..., 3, 3)."""
    k = fx.new_zeros(*fx.shape, 3, 3)
    k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2], k[..., 2, 2] = fx, fy, cx, cy, 1
    return k


def decode_pose(encoding: Tensor, size: tuple[int, int], centre: float = 0.0) -> tuple[Tensor, Tensor]:
    """(..., 9), i.e. translation, quaternion xyzw, field of view (vertical, horizontal) in rad -> transform (..., 4, 4) and
    intrinsics (..., 3, 3) in pixels of an image of (H, W) = size.

    centre: of the image, beyond W / 2 and H / 2, px. 0 is the convention of published models. In this package the centre of the
    first pixel is (0, 0), so the centre of the image is half a pixel less: -0.5.

    The field of view is clamped to 1..170 degrees: the heads' ReLU can give 0, an infinite focal length.
    """
    fov = encoding[..., 7:].clamp(0.0175, 2.967)
    height, width = size
    fx, fy = width / 2 / (fov[..., 1] / 2).tan(), height / 2 / (fov[..., 0] / 2).tan()
    k = pinhole(fx, fy, width / 2 + centre, height / 2 + centre)
    return rigid(rotation_from_quaternion(encoding[..., 3:7]), encoding[..., :3]), k


def rays_of(intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., 3, 3) -> (..., H, W, 3): rays through the pixels of an image of (H, W) = size, at z = 1."""
    k = intrinsics[..., None, None, :, :]
    v, u = torch.meshgrid(*(torch.arange(n, device=k.device, dtype=k.dtype) for n in size), indexing="ij")
    x, y = (u - k[..., 0, 2]) / k[..., 0, 0], (v - k[..., 1, 2]) / k[..., 1, 1]
    return torch.stack((x, y, torch.ones_like(x)), dim=-1)


def fit_intrinsics(rays: Tensor) -> Tensor:
    """(..., H, W, 3) rays or points in the camera frame, z > 0 -> (..., 3, 3): the pinhole camera nearest to them.

    Least squares of the pixels' whole-numbered indices on x/z and y/z, over some 50 x 50 pixels. Rays that do not come from a
    pinhole camera give invalid focal lengths: not finite or not positive.
    """
    height, width = rays.shape[-3:-1]
    rows = torch.arange(0, height, max(1, height // 50), device=rays.device)
    columns = torch.arange(0, width, max(1, width // 50), device=rays.device)
    some = rays[..., rows, :, :][..., columns, :].double()
    slopes = some[..., :2] / some[..., 2:].clamp_min(1e-6)  # (..., rows, columns, 2)
    u, v = torch.meshgrid(columns.double(), rows.double(), indexing="xy")
    found = []
    for slope, pixel in ((slopes[..., 0], u), (slopes[..., 1], v)):
        mean, middle = slope.mean((-2, -1)), pixel.mean()
        deviation = slope - mean[..., None, None]
        focal = (deviation * (pixel - middle)).mean((-2, -1)) / deviation.square().mean((-2, -1))
        found.append((focal, middle - focal * mean))
    (fx, cx), (fy, cy) = found
    return pinhole(fx, fy, cx, cy).to(rays.dtype)
