"""From one row of a Submap to its published form: valid pixels, depth image, points."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .. import geometry
from ..config import Config
from ..types import F32, F64, U8

# As in a PointCloud2: rgb holds the bits 0x00RRGGBB.
POINT_DTYPE = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<f4"), ("conf", "<f4")])

# An edge is where depth changes by more than EDGE_RATIO between neighbours and is not part of a slope: the inverse
# depth of any plane is linear in the image, so where its second difference is below EDGE_BEND (of itself) there is a
# slanted surface.
EDGE_RATIO = 1.1
EDGE_BEND = 0.04
EDGE_REACH = 2  # px; models draw an edge as a ramp, bent only at its ends: the pixels between are near one of them


def valid_mask(depth: F32, confidence: F32, config: Config) -> NDArray[np.bool_]:
    """(H, W) bool: pixels to publish, from depth (H, W), NaN where invalid, and confidence (H, W).

    Trusted (see trusted_mask), and within cloud.max_range if that is set.
    """
    return within_range(trusted_mask(depth, confidence, config), depth, config)


def within_range(mask: NDArray[np.bool_], depth: F32, config: Config) -> NDArray[np.bool_]:
    """(H, W) bool: those of `mask` whose depth is cloud.max_range at most, if that is set."""
    if config.cloud.max_range <= 0:
        return mask
    with np.errstate(invalid="ignore"):
        return mask & (depth <= config.cloud.max_range)


def trusted_mask(depth: F32, confidence: F32, config: Config) -> NDArray[np.bool_]:
    """(H, W) bool: a finite, positive depth, as confident as cloud.min_confidence, not among the least confident
    cloud.conf_percentile of the frame, and, if cloud.edge_filter, not on a depth edge. At any distance."""
    cloud = config.cloud
    with np.errstate(invalid="ignore"):
        mask = np.isfinite(depth) & (depth > 0)
        if cloud.edge_filter:
            edges = depth_edges(depth)
        if cloud.conf_percentile > 0 and mask.any():
            sure = confidence[mask]
            least = int(cloud.conf_percentile / 100 * (sure.size - 1))
            mask &= confidence >= np.partition(sure, least)[least]  # ten times as fast as np.percentile
        if cloud.min_confidence > 0:
            mask &= confidence >= cloud.min_confidence
    return mask & ~edges if cloud.edge_filter else mask


def depth_edges(depth: F32) -> NDArray[np.bool_]:
    """(H, W) bool: pixels on an edge of depth (H, W), where models leave points that fly between two surfaces."""
    with np.errstate(invalid="ignore", divide="ignore"):
        valid = np.isfinite(depth) & (depth > 0)
        w = np.where(valid, 1 / depth, 0).astype(np.float32)
    box = np.ones((3, 3), np.uint8)
    farthest = cv2.erode(np.where(valid, w, np.float32(1e30)), box)  # invalid pixels are never the farthest
    steep = cv2.dilate(w, box) > np.float32(EDGE_RATIO) * farthest
    if not steep.any():
        return steep
    bent = np.zeros(depth.shape, np.uint8)
    for step in (1, 2):  # also two pixels apart: a bend spread over several pixels is small between neighbours
        least = np.float32(EDGE_BEND * step) * w
        for axis in (0, 1):
            if depth.shape[axis] <= 2 * step:
                continue
            low, mid, high = (_shifted(w, axis, step, k) for k in range(3))
            inside = (low > 0) & (mid > 0) & (high > 0)
            target = _shifted(bent, axis, step, 1)
            target |= (inside & (np.abs(low + high - 2 * mid) > _shifted(least, axis, step, 1))).view(np.uint8)
    reach = np.ones((2 * EDGE_REACH + 1, 2 * EDGE_REACH + 1), np.uint8)
    return steep & cv2.dilate(bent, reach).view(np.bool_)


def _shifted(image: NDArray[Any], axis: int, step: int, k: int) -> NDArray[Any]:
    """View of `image` without `2 * step` rows or columns: k = 0 the neighbours before, 1 the middle, 2 those after."""
    part = slice(k * step, image.shape[axis] - (2 - k) * step)
    return image[part] if axis == 0 else image[:, part]


def depth_image(depth: F32, trusted: NDArray[np.bool_], config: Config) -> F32:
    """(H, W) float32: depth where `trusted` (see trusted_mask), +inf there beyond cloud.max_range if that is set, NaN elsewhere (REP 117,
    118). Untrusted pixels are never +inf, which would mean free space up to there."""
    out = np.where(trusted, depth, np.float32(np.nan)).astype(np.float32, copy=False)
    if config.cloud.max_range > 0:
        with np.errstate(invalid="ignore"):
            out[out > config.cloud.max_range] = np.inf
    return out


def points(
    depth: F32,
    intrinsics: F64,
    image: U8,
    confidence: F32,
    mask: NDArray[np.bool_],
    config: Config,
    odom_from_camera: F64 | None = None,
) -> NDArray[np.void]:
    """Points of POINT_DTYPE of one frame, every cloud.stride-th pixel of rows and columns.

    depth, confidence, mask: (H, W). image: (H, W, 3). intrinsics: (3, 3). In the camera's optical frame, or, if
    `odom_from_camera` (4, 4) is given, in the odometry frame. Unorganised: (n,), valid points only. cloud.organized:
    (rows, columns), x, y and z NaN where not valid.
    """
    step = config.cloud.stride
    every = (slice(None, None, step), slice(None, None, step))
    k = np.array(intrinsics, np.float64)
    k[:2] /= step  # pixel u lies at u / step of the thinned image
    z, mask = depth[every], mask[every]
    # merging channels by OpenCV is ten times as fast as filling the fields of an array
    red, green, blue = cv2.split(np.ascontiguousarray(image[every]))
    rgb = cv2.merge([blue, green, red, np.zeros_like(red)]).view("<f4")[..., 0]
    xyz = cv2.split(geometry.unproject(z, k))
    rows = cv2.merge([*xyz, rgb, np.ascontiguousarray(confidence[every])])
    if config.cloud.organized:
        rows[~mask, :3] = np.nan
    blocks = rows.view(f"V{POINT_DTYPE.itemsize}")[..., 0]  # selected as bytes, not field by field
    camera_points = (blocks if config.cloud.organized else blocks[mask]).view(POINT_DTYPE)
    return camera_points if odom_from_camera is None else moved(camera_points, odom_from_camera)


def points_of(places: F32, colours: U8, confidence: F32) -> NDArray[np.void]:
    """(n,) of POINT_DTYPE from places (n, 3), RGB colours (n, 3) and confidence (n,)."""
    out = np.empty(len(places), POINT_DTYPE)
    red, green, blue = colours.astype(np.uint32).T
    for name, values in zip("xyz", places.T, strict=True):
        out[name] = values
    out["rgb"], out["conf"] = (red << 16 | green << 8 | blue).view(np.float32), confidence
    return out


def colours_of(points: NDArray[Any]) -> U8:
    """(n, 3) RGB of points of POINT_DTYPE (n,)."""
    bits = np.ascontiguousarray(points["rgb"]).view(np.uint32)
    return np.stack([(bits >> shift) & 255 for shift in (16, 8, 0)], axis=-1).astype(np.uint8)


def moved(points: NDArray[np.void], target_from_source: F64) -> NDArray[np.void]:
    """A copy of points of POINT_DTYPE, of any shape, in another frame. target_from_source: (4, 4)."""
    out = np.array(points, order="C")
    rows = out.view(np.float32).reshape(*points.shape, 5)
    x, y, z = (rows[..., i].copy() for i in range(3))
    for i, (a, b, c, t) in enumerate(target_from_source[:3].astype(np.float32)):
        rows[..., i] = a * x + b * y + c * z + t  # here three times as fast as a matrix product
    return out
