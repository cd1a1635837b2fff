"""The values passed between the stages: Frame -> Window -> Prediction -> Submap.

Transforms are 4x4 float64 matrices named `target_from_source`. Camera frames are optical (x right, y down, z forward);
pixel centres lie at whole numbers. S frames, model images of H x W pixels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class SourceScale:
    """What one source says: metres per unit of the model, the sigma of its logarithm, and how many readings that rests on."""

    name: str
    metres: float
    sigma: float
    readings: int = 0


@dataclass(frozen=True)
class Scale:
    """How long the model's unit is, and which unit the odometry's lengths have (see scale/).

    metres: per unit of the model, NaN while unknown. sigma: of its logarithm, NaN while unknown. source: names joined by +, "none" while
    unknown. stamp_ns: of the newest reading, 0 without any. unit: units of the odometry per unit of the model, the same for a whole world.
    in_metres: whether that made them metres; `sigma` is then also how far they may be off. sources: each that says something. conflict:
    which of them disagree and by how much, "" if none do. left_out: readings that could not be used, by reason. follows: whether `metres`
    follows the drift of the model's unit from window to window; else it is a mean over the last keyframes.
    """

    metres: float = float("nan")
    sigma: float = float("nan")
    source: str = "none"
    stamp_ns: int = 0
    unit: float = 1.0
    in_metres: bool = False
    sources: tuple[SourceScale, ...] = ()
    conflict: str = ""
    left_out: tuple[tuple[str, int], ...] = ()
    follows: bool = False

    @property
    def known(self) -> bool:
        return self.metres == self.metres

    @property
    def correction(self) -> float:
        """Metres per unit of the odometry, as known now; 1 while unknown."""
        return self.metres / self.unit if self.known else 1.0


NO_SCALE = Scale()
"""nothing is known, and lengths are in the model's own unit"""


@dataclass(frozen=True, eq=False)
class Observations:
    """The pixels at which points of the scene are seen in one image.

    ids: (n,) int64, ascending; an id denotes the same point in all images of the run. pixels: (n, 2) float64, x and y in the
    rectified image; pixel centres lie at whole numbers. world: number of the world, counted from the start. at_once: (n, 2) where a
    camera that exposes all rows at the stamp would see them; None if this one does.
    """

    ids: I64
    pixels: F64
    world: int = 0
    at_once: F64 | None = None

    @property
    def steady(self) -> F64:
        """(n, 2) pixels that fit one pose of the camera: `at_once`, otherwise `pixels`."""
        return self.pixels if self.at_once is None else self.at_once

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, ids: I64) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows of this image and of `ids` (m,), ascending, with the same points."""
        _, here, there = np.intersect1d(self.ids, ids, assume_unique=True, return_indices=True)
        return here, there


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Positions of points of the scene as known after a window: the reference of the odometry between keyframes.

    ids: (n,) int64, ascending, as in Observations. positions: (n, 3) in the odometry frame and its units. anchors: (n, 3) position
    of the camera with the most accurate direction to each point. log_sigma: (n,) standard deviation of the logarithm of the
    distance from there; across that ray a point is as accurate as a pixel. stamps_ns: of the keyframes of the first camera that
    they were found from, oldest first, and its poses there, odom_from_camera (k, 4, 4). camera, intrinsics (3, 3): its name, and in
    pixels of its image as rectified. covariance: (6, 6) of the last of those poses, since the world began: position, then rotation
    (a vector from the left), both in the odometry frame, in odometry units and rad. world: of the observations. scale: of those units.
    """

    ids: I64
    positions: F64
    anchors: F64
    log_sigma: F64
    stamps_ns: tuple[int, ...]
    odom_from_camera: F64
    camera: str
    intrinsics: F64
    covariance: F64
    world: int = 0
    scale: Scale = NO_SCALE

    def __len__(self) -> int:
        return len(self.ids)

    def sure(self, log_sigma: float = 0.1) -> Landmarks:
        """The landmarks whose distance is known at least that well."""
        good = self.log_sigma < log_sigma
        return dataclasses.replace(
            self,
            ids=self.ids[good],
            positions=self.positions[good],
            anchors=self.anchors[good],
            log_sigma=self.log_sigma[good],
        )


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of one camera, decoded.

    image: (H0, W0, 3) uint8, RGB. stamp_ns: integer nanoseconds of the source's clock. camera: name of its optical frame.
    intrinsics: (3, 3) float64 in pixels of `image`, or None if unknown. arrival_ns: steady-clock time of arrival (start of its
    age), 0 offline. encoding: of the image message, "" if that cannot change. Further inputs, for models that accept them: depth
    (H0, W0) float32 along z, of the same pixels, 0 or NaN where there is none; world_from_camera (4, 4), in any world that stays
    the same, such as that of a wheel odometry. base_from_camera (4, 4), metres: pose of the camera in the robot's frame `base` or,
    where that is "", relative to the first camera of its set. others: with several cameras, the frames of the other ones, taken at
    about the same time. observations: the points tracked through all images of this camera, None without tracking.
    """

    image: U8
    stamp_ns: int
    camera: str = "camera_optical_frame"
    intrinsics: F64 | None = None
    arrival_ns: int = 0
    encoding: str = ""
    depth: F32 | None = None
    world_from_camera: F64 | None = None
    base: str = ""
    base_from_camera: F64 | None = None
    others: tuple[Frame, ...] = ()
    observations: Observations | None = None

    @property
    def all_cameras(self) -> tuple[Frame, ...]:
        """This frame and those of the other cameras."""
        return (self, *self.others)


@dataclass(frozen=True, eq=False)
class Window:
    """Keyframes to be reconstructed together, oldest first; the last `new` of them were in no window before. With several cameras,
    each stands for its set."""

    frames: tuple[Frame, ...]
    new: int

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def cameras(self) -> int:
        """Number of frames in a set, the same for all."""
        return 1 + len(self.frames[0].others)

    def spread(self) -> Window:
        """The window with the frames of all cameras, set by set, as the model sees it."""
        if not self.frames[0].others:
            return self
        return Window(tuple(f for frame in self.frames for f in frame.all_cameras), self.new * self.cameras)


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a window besides its images; NaN where unknown.

    intrinsics: (S, 3, 3) in pixels of the model image. depth: (S, H, W) float32 along z. world_from_camera: (S, 4, 4). metric: whether
    depth and world_from_camera are in metres.
    """

    intrinsics: F64
    depth: F32
    world_from_camera: F64
    metric: bool = True

    @staticmethod
    def nothing(frames: int, height: int, width: int, metric: bool = True) -> Known:
        """An instance without known values, to be filled in."""
        return Known(
            np.full((frames, 3, 3), np.nan),
            np.full((frames, height, width), np.nan, np.float32),
            np.full((frames, 4, 4), np.nan),
            metric,
        )

    def __bool__(self) -> bool:
        """Whether anything is known."""
        return any(np.isfinite(a).any() for a in (self.intrinsics, self.depth, self.world_from_camera))


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction of a backbone for one window, in the window's own frame (that of its first camera) and its own scale.

    images: (S, H, W, 3) uint8, the model's input. depth: (S, H, W) float32, along z. confidence: (S, H, W) float32, > 1 for VGGT (1
    + exp), larger is more confident. window_from_camera: (S, 4, 4). intrinsics: (S, 3, 3) in pixels of the model image, as
    predicted. merged: (S, H, W) bool, pixels whose tokens an accelerator reduced, or None if it reduced none. kept_ratio: share of
    patch tokens that the trunk processed; read_ratio: share of the patches whose keys its global attention read. meaningful: (S, H,
    W) bool, False where the model predicts that its depth is meaningless (sky, windows); None if it does not predict that. dense:
    the frames, ascending, for which depth, confidence and meaningful have rows (the requested ones); None: all. Intrinsics of other
    frames may be NaN. reused: frames that did not go through the encoder again, which saved about saved_ms.
    places: (S, D), a descriptor of what each frame looks like as a whole, of length 1; None if the backbone has none.
    """

    images: U8
    depth: F32
    confidence: F32
    window_from_camera: F64
    intrinsics: F64
    merged: NDArray[np.bool_] | None = None
    kept_ratio: float = 1.0
    read_ratio: float = 1.0
    meaningful: NDArray[np.bool_] | None = None
    dense: tuple[int, ...] | None = None
    reused: int = 0
    saved_ms: float = 0.0
    places: F32 | None = None

    def row(self, frame: int) -> int | None:
        """Row of depth and confidence for that frame of the window; None if there is none."""
        if self.dense is None:
            return frame
        return self.dense.index(frame) if frame in self.dense else None


@dataclass(frozen=True)
class Alignment:
    """How a window was aligned with the previous ones (see alignment.py).

    accepted: False if the residual failed the gate. shared: number of frames both know. scale: odom units per window unit.
    depth_residual: median |log depth ratio - log scale| over shared pixels (relative). rotation_residual: largest
    disagreement of shared poses, rad. translation_residual: the same, odom units divided by median shared depth.
    reason: why it was refused, or "" .
    """

    accepted: bool
    shared: int
    scale: float
    depth_residual: float = 0.0
    rotation_residual: float = 0.0
    translation_residual: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class RigResidual:
    """Difference between the camera poses on the rig as estimated from images and as given (see rig.py).

    rotation: median angle between the two, rad. direction: the same for the directions from the first camera to the others, rad,
    NaN where they coincide.
    """

    rotation: float
    direction: float


@dataclass(frozen=True)
class Refinement:
    """Result of bundle adjustment of a window (see refine.py).

    landmarks, observations, inliers: how many, 0 if nothing was refined. error_px: median reprojection error of the inliers, NaN without
    any. refined: share of the new keyframes whose pose and depth were refined. reason: why not all of them, "" if all. iterations:
    number of linear systems solved.
    """

    landmarks: int = 0
    observations: int = 0
    inliers: int = 0
    error_px: float = float("nan")
    refined: float = 0.0
    reason: str = ""
    iterations: int = 0


class DeviceMemory(NamedTuple):
    """Memory of the model's device, MiB."""

    used: float
    free: float


@dataclass(frozen=True, eq=False)
class Submap:
    """The new frames of one window in the odometry frame: published, and never rewritten afterwards.

    The arrays have one row for each frame of `frames` (the N new ones, oldest first; with several cameras set by set, the first camera
    first). images: (N, H, W, 3) uint8. depth:
    (N, H, W) float32 along z in odom units (metres where the scale is known), NaN where invalid. confidence: (N, H, W).
    intrinsics: (N, 3, 3) in pixels of the (H, W) image; those given with the frame if any, else predicted.
    odom_from_camera: (N, 4, 4). timings_ms: stage -> milliseconds. metric: whether the model's own unit
    is the metre. rig: with several cameras whose places are known. reused: share of the window's frames that did not go through the
    encoder again, which saved about saved_ms. landmarks: points of the scene as known now, None if nothing changed.
    covariance: (6, 6) of the first camera's newest pose, as in Landmarks.
    refinement: result of the bundle adjustment.
    world: number of the world, counted from the start. places: (N, D), as in Prediction. scale: of the odometry's unit, as known now.
    """

    frames: tuple[Frame, ...]
    images: U8
    depth: F32
    confidence: F32
    intrinsics: F64
    odom_from_camera: F64
    alignment: Alignment
    merged: NDArray[np.bool_] | None = None
    kept_ratio: float = 1.0
    read_ratio: float = 1.0
    timings_ms: dict[str, float] = field(default_factory=dict)
    metric: bool = False
    rig: RigResidual | None = None
    landmarks: Landmarks | None = None
    covariance: F64 = field(default_factory=lambda: np.zeros((6, 6)))
    refinement: Refinement = field(default_factory=lambda: Refinement())
    world: int = 0
    reused: float = 0.0
    saved_ms: float = 0.0
    places: F32 | None = None
    scale: Scale = NO_SCALE

    def __len__(self) -> int:
        return len(self.frames)
