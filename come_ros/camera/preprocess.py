"""From a camera's image to the model's: one uniform scale and a central crop, with matching intrinsics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import FrameError
from ..types import F32

MIN_SIDE = 16  # px, about one patch
MAX_ASPECT = 8


@dataclass(frozen=True)
class CropResize:
    """How the model's image lies in the source: u_model = (u + 0.5 - left) * scale - 0.5, and alike with v and top.

    scale: model pixels per source pixel. left, top: corner of the crop in the source, px, continuous (0 is the outer
    border of the first pixel). width, height: size of the model's image, px.
    """

    scale: float
    left: float
    top: float
    width: int
    height: int


def check_image(image: NDArray[np.uint8]) -> None:
    """Raises FrameError unless the image is (H, W, 3) uint8 and neither tiny nor very elongated."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise FrameError(
            f"an image has shape {image.shape} and type {image.dtype}, but must be (H, W, 3) uint8 RGB: convert it before"
        )
    height, width = image.shape[:2]
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_ASPECT * min(width, height):
        raise FrameError(
            f"an image of {width}x{height} px cannot be used: its sides must be {MIN_SIDE} px or more, and one at most {MAX_ASPECT} times "
            f"the other; set the camera's size"
        )


class Sized(Protocol):
    """Anything with an image_size: a backbones.Backbone or a GeometryModel."""

    def image_size(self, width: int, height: int, side: int) -> tuple[int, int]:
        """(W, H) of the model's image for a (width, height) image; the longer side is about `side`."""


@dataclass(frozen=True)
class PlainSizes:
    """The default rule for image sizes, used where no model is loaded."""

    patch_size: int
    native_side: int

    def image_size(self, width: int, height: int, side: int) -> tuple[int, int]:
        """Whole patches, nearest to the image's proportions."""
        return patch_grid_size(width, height, side, self.patch_size)


def image_plan(model: Sized, width: int, height: int, side: int) -> CropResize:
    """The crop of a (height, width) image for the model, by the model's own rule; the longer side becomes about `side`. The node
    and all commands use this function. Raises FrameError for an empty image."""
    return cover(width, height, *model.image_size(width, height, side))


def plan_resize(width: int, height: int, side: int, patch: int) -> CropResize:
    """The crop of a (height, width) image whose longer side becomes `side`, both sides multiples of `patch`.

    Raises FrameError for an empty image.
    """
    return cover(width, height, *patch_grid_size(width, height, side, patch))


def patch_grid_size(width: int, height: int, side: int, patch: int) -> tuple[int, int]:
    """(W, H) with the longer side about `side`, nearest to the image's proportions. Raises FrameError for an empty image."""
    if min(width, height) < 1:
        raise FrameError(f"an image of {width}x{height} px is empty: check the camera driver or the file")
    longer = max(width, height)
    target = patch * max(1, int(side / patch + 0.5))
    w, h = (patch * max(1, int(extent * target / longer / patch + 0.5)) for extent in (width, height))
    return w, h


def cover(width: int, height: int, w: int, h: int) -> CropResize:
    """The crop of a (height, width) image to (h, w): the excess is cut evenly on both ends, without distortion."""
    scale = max(w / width, h / height)  # so that the crop never leaves the source
    return CropResize(scale, (width - w / scale) / 2, (height - h / scale) / 2, w, h)


def preprocess(image: NDArray[np.uint8], plan: CropResize) -> NDArray[np.uint8]:
    """(plan.height, plan.width, 3) uint8 of `image` (H, W, 3) uint8: bicubic, antialiased; the crop is exact in sub-pixels."""
    check_image(image)
    height, width = image.shape[:2]
    if (plan.width, plan.height, plan.scale) == (width, height, 1.0):
        return np.ascontiguousarray(image)
    # rounding must not push the box out of the image, which PIL refuses
    right = min(width, plan.left + plan.width / plan.scale)
    bottom = min(height, plan.top + plan.height / plan.scale)
    box = (max(0.0, plan.left), max(0.0, plan.top), right, bottom)
    source = Image.fromarray(np.ascontiguousarray(image))
    # reducing_gap: shrinking by 4 or more starts with a box average: half the time, a mean error of 0.25 of 255 levels
    # Image.Resampling is newer than the Pillow of Ubuntu 22.04
    resized = source.resize((plan.width, plan.height), Image.BICUBIC, box=box, reducing_gap=2.0)  # type: ignore[attr-defined]
    return np.asarray(resized)


def crop_intrinsics(intrinsics: NDArray[np.float64], plan: CropResize) -> NDArray[np.float64]:
    """Intrinsics (..., 3, 3) of the model's image from those of the source image."""
    return _model_from_source(plan) @ np.asarray(intrinsics, np.float64)


def uncrop_intrinsics(intrinsics: NDArray[np.float64], plan: CropResize) -> NDArray[np.float64]:
    """Intrinsics (..., 3, 3) of the source image from those of the model's: the inverse of `crop_intrinsics`."""
    f = 1 / plan.scale
    left, top = plan.left + 0.5 * f - 0.5, plan.top + 0.5 * f - 0.5
    return np.array([[f, 0, left], [0, f, top], [0, 0, 1.0]]) @ np.asarray(intrinsics, np.float64)


def _model_from_source(plan: CropResize) -> NDArray[np.float64]:
    s = plan.scale
    return np.array([[s, 0, (0.5 - plan.left) * s - 0.5], [0, s, (0.5 - plan.top) * s - 0.5], [0, 0, 1.0]])


def crop_depth(depth: NDArray[np.float32], plan: CropResize) -> NDArray[np.float32]:
    """(plan.height, plan.width) float32 of `depth` (H, W) in the source's pixels, NaN where there is none.

    Each pixel takes the nearest value; where that is invalid, it takes the nearest surface within the pixel's area, so sparse depth
    survives downscaling. Values are never interpolated between two surfaces.
    """
    height, width = depth.shape
    valid = np.isfinite(depth) & (depth > 0)
    v, u = np.indices((plan.height, plan.width))
    near_u, near_v = (
        np.clip(np.rint((x + 0.5) / plan.scale + start - 0.5).astype(np.int64), 0, extent - 1)
        for x, start, extent in ((u, plan.left, width), (v, plan.top, height))
    )
    out = np.where(valid[near_v, near_u], depth[near_v, near_u], np.float32(np.inf)).astype(np.float32)
    if np.isinf(out).any():
        rows, columns = np.nonzero(valid)
        to_u, to_v = (
            np.floor((x + 0.5 - start) * plan.scale).astype(np.int64)
            for x, start in ((columns, plan.left), (rows, plan.top))
        )
        inside = (to_u >= 0) & (to_u < plan.width) & (to_v >= 0) & (to_v < plan.height)
        splat = np.full_like(out, np.inf)
        np.minimum.at(splat, (to_v[inside], to_u[inside]), depth[rows[inside], columns[inside]])
        out = np.where(np.isinf(out), splat, out)
    return np.where(np.isinf(out), np.float32(np.nan), out)


def in_model_pixels(depth: F32, shape: tuple[int, ...]) -> F32:
    """Depth (H, W) of the source at the pixels of the model's image, `shape` (h, w): the nearest value, without interpolation."""
    height, width = depth.shape
    h, w = shape
    plan = cover(width, height, w, h)
    u = (np.arange(w) + 0.5) / plan.scale + plan.left
    v = (np.arange(h) + 0.5) / plan.scale + plan.top
    rows, columns = np.minimum(v.astype(int), height - 1), np.minimum(u.astype(int), width - 1)
    return depth[rows[:, None], columns]
