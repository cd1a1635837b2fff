"""Difficulty of a window, from its ground truth alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import geometry
from ..types import F32, F64, U8
from .poses import rotation_error_deg

if TYPE_CHECKING:
    from .window import WindowTruth

SAME_SURFACE = 0.05  # share of the depth: a point seen nearer or farther than this is another point
EVERY = 3  # step between sampled rows and columns


def difficulty(truth: WindowTruth) -> dict[str, float]:
    """Computed from the ground truth of S images:
    turn_deg: the largest rotation from the first image, deg. parallax: the largest distance from it, in median depths. overlap:
    mean share of its pixels that the others see. depth_spread: standard deviation of log depth. texture: mean change of grey from
    pixel to pixel, 0 to 255.
    """
    found = {"texture": texture(truth.images)}
    if truth.depth is not None:
        seen = np.log(truth.depth[np.isfinite(truth.depth) & (truth.depth > 0)])
        found["depth_spread"] = float(seen.std()) if seen.size else np.nan
    if truth.world_from_camera is None or len(truth.images) < 2:
        return found
    from_first = geometry.inverse(truth.world_from_camera[0]) @ truth.world_from_camera[1:]
    found["turn_deg"] = float(rotation_error_deg(np.eye(3), from_first[:, :3, :3]).max())
    if truth.depth is not None and np.isfinite(middle := np.nanmedian(truth.depth)):
        found["parallax"] = float(np.linalg.norm(from_first[:, :3, 3], axis=1).max() / middle)
        if truth.intrinsics is not None:
            shares = [
                overlap(truth.depth[0], d, p, truth.intrinsics)
                for d, p in zip(truth.depth[1:], from_first, strict=True)
            ]
            found["overlap"] = float(np.mean(shares))
    return found


def texture(images: U8) -> float:
    """Mean length of the grey gradient of (S, H, W, 3) uint8 images, grey levels a pixel."""
    grey = images.astype(np.float32).mean(3)
    dy, dx = np.gradient(grey, axis=(1, 2))
    return float(np.hypot(dx, dy).mean())


def overlap(depth: F32, other: F32, from_other: F64, k: F64) -> float:
    """Share of the known pixels of an image that lie in the other one, not behind what that sees there. depth, other: (H, W) along z,
    NaN where unknown. from_other: (4, 4), takes points of the other camera to the image's own. k: (3, 3) of both."""
    height, width = depth.shape
    v, u = np.mgrid[0:height:EVERY, 0:width:EVERY].reshape(2, -1)
    z = depth[v, u].astype(np.float64)
    known = np.isfinite(z) & (z > 0)
    if not known.any():
        return float("nan")
    points = np.linalg.solve(k, np.stack((u, v, np.ones_like(u))).astype(np.float64)[:, known]) * z[known]
    back = geometry.inverse(from_other)
    x, y, far = k @ (back[:3, :3] @ points + back[:3, 3:])
    ahead = far > 1e-6
    column, row = np.rint(x[ahead] / far[ahead]), np.rint(y[ahead] / far[ahead])
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    there = other[row[inside].astype(np.int64), column[inside].astype(np.int64)]
    hidden = far[ahead][inside] > (1 + SAME_SURFACE) * there  # False where unknown: unknown depth occludes nothing
    return float((~hidden).sum() / known.sum())
