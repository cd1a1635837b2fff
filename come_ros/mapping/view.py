"""Features of a keyframe with their depth, about sixty kilobytes, kept to recognise its place later."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ..camera.preprocess import cover
from ..types import F32, F64, U8

FEATURES = 400
LONGEST_SIDE = 480  # px; larger images are shrunk
CONTRAST = 0.02  # of SIFT, half of its default: plain rooms keep some features
THUMBNAIL = 16, 12  # px, of the place descriptor if the backbone has none


@dataclass(frozen=True, eq=False)
class View:
    """rays: (n, 2) float32, x and y of features at z = 1 in the camera's frame. depth: (n,) float32 along z, in odometry units, NaN where
    unknown. descriptors: (n, 128) uint8. focal: px, in the image in which they were found. usual_depth: median of the image. place: (D,)
    float32 of length 1, a descriptor of the whole image."""

    rays: F32
    depth: F32
    descriptors: U8
    focal: float
    usual_depth: float
    place: F32

    def __len__(self) -> int:
        return len(self.rays)

    def points(self) -> F64:
        """(n, 3) in the camera's frame, NaN where the depth is unknown."""
        z = self.depth.astype(np.float64)[:, None]
        return np.concatenate([self.rays * z, z], axis=1)


def view_of(image: U8, depth: F32, intrinsics: F64, place: F32 | None) -> View:
    """The view of a camera's image (H0, W0, 3). depth: (H, W), intrinsics: (3, 3), both of the model's image that was cropped from it.
    place: descriptor of the whole image from the backbone, of any length; None to use a small copy of the image."""
    gray = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    height, width = gray.shape
    shrink = min(1.0, LONGEST_SIDE / max(height, width))
    small = gray
    if shrink < 1.0:
        size = round(width * shrink), round(height * shrink)
        small = np.asarray(cv2.resize(gray, size, interpolation=cv2.INTER_AREA), np.uint8)
    sift = cv2.SIFT_create(nfeatures=FEATURES, contrastThreshold=CONTRAST)  # type: ignore[attr-defined]
    found, descriptors = sift.detectAndCompute(small, None)
    pixels = np.array([point.pt for point in found], np.float64).reshape(-1, 2)
    if descriptors is None:
        descriptors = np.empty((0, 128), np.float32)
    # OpenCV returns more if some are equally strong
    pixels, descriptors = pixels[:FEATURES], np.clip(np.rint(descriptors[:FEATURES]), 0, 255).astype(np.uint8)
    plan = cover(width, height, depth.shape[1], depth.shape[0])
    source = (pixels + 0.5) * [width / small.shape[1], height / small.shape[0]]
    model = (source - [plan.left, plan.top]) * plan.scale - 0.5
    x, y = np.rint(model).astype(np.int64).T
    inside = (x >= 0) & (y >= 0) & (x < depth.shape[1]) & (y < depth.shape[0])
    z = np.full(len(pixels), np.nan, np.float32)
    z[inside] = depth[y[inside], x[inside]]
    rays = (model - intrinsics[:2, 2]) / intrinsics[[0, 1], [0, 1]]
    good = np.isfinite(depth)
    return View(
        rays.astype(np.float32), z, descriptors, float(intrinsics[0, 0] / plan.scale * small.shape[1] / width),
        float(np.median(depth[good])) if good.any() else 1.0, _unit(_thumbnail(gray) if place is None else place),
    )  # fmt: skip


def _thumbnail(gray: U8) -> F32:
    small = cv2.resize(gray, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    return np.asarray(small - small.mean(), np.float32)


def _unit(vector: F32) -> F32:
    length = float(np.linalg.norm(vector))
    return (vector / length if length > 0 and np.isfinite(length) else np.zeros_like(vector)).astype(np.float32)
