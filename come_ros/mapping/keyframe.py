"""A keyframe of the map: its pose, its features, and a small image with depth, from which the map's points can be rebuilt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import geometry
from ..types import F32, F64, NO_SCALE, U8, Scale, Submap
from .view import View

LONGEST_SIDE = 192  # px of a thumbnail: images of small models are kept whole, of larger ones every nth pixel
NEAREST, FARTHEST = 1e-4, 6e4  # depths that float16 can hold


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """image: (h, w, 3) uint8, RGB. depth: (h, w) float16 along z, in odometry units, NaN where it is unknown or not trusted. intrinsics:
    (3, 3) float64, px of both."""

    image: U8
    depth: NDArray[np.float16]
    intrinsics: F64

    def points(self) -> tuple[F32, U8]:
        """Points (n, 3) in the camera's frame, and their colours (n, 3), of all pixels with a known depth."""
        known = np.isfinite(self.depth)
        places = geometry.unproject(self.depth.astype(np.float32), self.intrinsics)[known]
        return places.astype(np.float32, copy=False), self.image[known]


@dataclass(frozen=True, eq=False)
class Keyframe:
    """A keyframe of the map. odom_from_camera: (4, 4) as published. view: None if only the pose is kept. thumbnail: None if no depth is
    kept. session: number of the run that added it; each run has its own odometry frame. scale: of the odometry's unit, as known when it
    was added."""

    stamp_ns: int
    odom_from_camera: F64
    view: View | None
    thumbnail: Thumbnail | None = None
    session: int = 0
    scale: Scale = NO_SCALE

    @property
    def key(self) -> tuple[int, int]:
        """Session and stamp, which identify a keyframe within a map."""
        return self.session, self.stamp_ns


def thumbnail_of(submap: Submap, row: int, trusted: NDArray[np.bool_]) -> Thumbnail:
    """The thumbnail of frame `row`. trusted: (H, W) bool, pixels whose depth is kept."""
    depth = submap.depth[row]
    step = -(-max(depth.shape) // LONGEST_SIDE)
    every = (slice(None, None, step), slice(None, None, step))
    with np.errstate(invalid="ignore"):
        good = trusted & (depth > NEAREST) & (depth < FARTHEST)
    intrinsics = np.array(submap.intrinsics[row], np.float64)
    intrinsics[:2] /= step  # pixel u is at u / step in the thinned image
    return Thumbnail(
        np.ascontiguousarray(submap.images[row][every]),
        np.where(good, depth, np.float32(np.nan))[every].astype(np.float16),
        intrinsics,
    )
