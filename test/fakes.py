"""A small world with known geometry, and a backbone that tells it in a gauge and scale of each window's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from come_ros import geometry
from come_ros.backbones.backbone import Backbone
from come_ros.errors import OutOfMemory
from come_ros.types import F32, F64, U8, Frame, Prediction

STEP_NS = 100_000_000
START_NS = 1_700_000_000_123_456_789


@dataclass(frozen=True, eq=False)
class Truth:
    """A sequence with its geometry, in metres; the fields are named like those of datasets.synthetic.SyntheticSequence.

    images: (S, H, W, 3) uint8, each one recognisable. depth: (S, H, W) float32 along z. world_from_camera: (S, 4, 4).
    intrinsics: (3, 3). stamps_ns: (S,).
    """

    images: U8
    depth: F32
    world_from_camera: F64
    intrinsics: F64
    stamps_ns: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)

    def frames(self, intrinsics: bool = False, camera: str = "camera_optical_frame") -> list[Frame]:
        """All of them, with or without their intrinsics."""
        k = self.intrinsics if intrinsics else None
        return [Frame(im, int(t), camera, k) for im, t in zip(self.images, self.stamps_ns, strict=True)]


def truth_of(poses: F64, height: int = 56, width: int = 70, focal: float = 60.0, seed: int = 0) -> Truth:
    """A camera with `poses` (S, 4, 4; optical axes, world z up) in a box room of 8 x 6 x 3 m about the origin.

    The images show blocks of noise, one pattern for each frame: they only say which frame it is.
    """
    k = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 255, (len(poses), 4, 5, 3), dtype=np.uint8)
    images = np.stack([cv2.resize(b, (width, height), interpolation=cv2.INTER_CUBIC) for b in blocks])
    stamps = START_NS + STEP_NS * np.arange(len(poses))
    return Truth(images, np.stack([room_depth(p, k, height, width) for p in poses]), np.asarray(poses), k, stamps)


def room_depth(world_from_camera: F64, intrinsics: F64, height: int, width: int) -> F32:
    """(H, W) float32 z-depth of the walls, seen from inside."""
    rays = geometry.unproject(np.ones((height, width)), intrinsics) @ world_from_camera[:3, :3].T
    with np.errstate(divide="ignore"):
        far = (np.sign(rays) * np.array([4.0, 3.0, 1.5]) - world_from_camera[:3, 3]) / rays
    return np.nanmin(far, axis=-1).astype(np.float32)


def trajectory(kind: str, frames: int, step: float = 0.04) -> F64:
    """world_from_camera (frames, 4, 4): "curve", "line" (forward), "rotation" (about the centre), "static"."""
    poses = []
    for i in range(frames):
        s = step * i
        yaw, position = 0.0, np.zeros(3)
        if kind == "curve":
            yaw, position = 0.8 * s, np.array([2 * np.sin(0.7 * s), 1.5 * np.sin(0.45 * s), 0.3 * np.sin(s)])
        elif kind == "line":
            position = np.array([-2 + s, 0.2, 0.1])
        elif kind == "rotation":
            yaw = 2 * s
        elif kind != "static":
            raise ValueError(kind)
        turn = geometry.rotation_from_vector([0, 0, yaw]) @ geometry.rotation_from_vector([0, 0.1 * np.sin(s), 0])
        poses.append(geometry.transform(turn @ geometry.BODY_FROM_OPTICAL[:3, :3], position))
    return np.stack(poses)


@dataclass(frozen=True)
class Noise:
    """Relative depth error of each pixel and of each frame as a whole, pose errors in rad and metres: one sigma."""

    pixel: float = 0.0
    frame: float = 0.0
    rotation: float = 0.0
    position: float = 0.0


class TruthBackbone(Backbone):
    """Recognises frames by their image and predicts the truth, in a random gauge and scale for each window.

    scales: range of metres per window unit. spoil: called with (index of the window, Prediction), returns the
    Prediction to be given instead. seen: the frames of each window, as indices.
    """

    name = "truth"
    patch_size = 14
    native_side = 70
    device = "cpu"

    def __init__(
        self,
        truth: Truth,
        scales: tuple[float, float] = (0.5, 2.0),
        noise: Noise = Noise(),
        spoil: Callable[[int, Prediction], Prediction] | None = None,
        seed: int = 0,
    ) -> None:
        self.truth, self.scales, self.noise, self.spoil = truth, scales, noise, spoil
        self.seen: list[list[int]] = []
        self._rng = np.random.default_rng(seed)
        self._signatures = np.stack([_signature(image) for image in truth.images])

    def predict(self, images: U8, stop=None, known=None, step=None) -> Prediction:
        """The truth of images (S, H, W, 3), about the first camera of the window and in a unit of its own."""
        index = [int(np.argmin(np.abs(self._signatures - _signature(im)).mean(axis=1))) for im in images]
        self.seen.append(index)
        rng, noise = self._rng, self.noise
        metres = np.exp(rng.uniform(*np.log(self.scales)))  # per window unit
        height, width = images.shape[1:3]
        depth = np.stack([self._depth(i, height, width) for i in index])
        depth = depth * np.exp(noise.frame * rng.standard_normal((len(index), 1, 1)))
        depth = depth * np.exp(noise.pixel * rng.standard_normal(depth.shape))

        poses = geometry.inverse(self.truth.world_from_camera[index[0]]) @ self.truth.world_from_camera[index]
        for pose in poses[1:]:
            pose[:3, :3] = geometry.rotation_from_vector(noise.rotation * rng.standard_normal(3)) @ pose[:3, :3]
            pose[:3, 3] += noise.position * rng.standard_normal(3)
        poses[:, :3, 3] /= metres
        prediction = Prediction(
            images=images,
            depth=(depth / metres).astype(np.float32),
            confidence=(1 + rng.gamma(4.0, 1.0, depth.shape)).astype(np.float32),
            window_from_camera=poses,
            intrinsics=np.tile(self._intrinsics(height, width), (len(index), 1, 1)),
        )
        return prediction if self.spoil is None else self.spoil(len(self.seen) - 1, prediction)

    def _intrinsics(self, height: int, width: int) -> F64:
        """Those of the truth for a model image of the same shape, scaled."""
        ratio = width / self.truth.images.shape[2]
        k = self.truth.intrinsics.copy()
        k[:2, 2] += 0.5
        k[:2] *= ratio
        k[:2, 2] -= 0.5
        return k

    def _depth(self, index: int, height: int, width: int) -> F32:
        return cv2.resize(self.truth.depth[index], (width, height), interpolation=cv2.INTER_NEAREST)


def _signature(image: U8) -> NDArray[np.float32]:
    return cv2.resize(image, (10, 8), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()


def aligned_error(estimated: F64, true: F64) -> tuple[float, float, float]:
    """After the best similarity of the positions: RMS position error, largest rotation error (rad), scale."""
    scale, rotation, translation = geometry.umeyama(estimated[:, :3, 3], true[:, :3, 3])
    moved = geometry.transform_poses(scale, rotation, translation, estimated)
    rms = float(np.sqrt(np.mean(np.sum((moved - true)[:, :3, 3] ** 2, axis=1))))
    angle = geometry.rotation_angle(np.swapaxes(moved[:, :3, :3], -1, -2) @ true[:, :3, :3])
    return rms, float(angle.max()), scale


class PretendedTime:
    """A clock that only moves when it is told to: `clock()` s, `clock.sleep(s)`."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class Seen:
    """One window of `live_in_pretended_time`. when, latency_s: s, of its publication and since its newest frame came in."""

    when: float
    latency_s: float
    effort: tuple[float, int, int]
    accepted: bool


def live_in_pretended_time(
    pipeline, clock: PretendedTime, frames: list[Frame], seconds: float, hz: float
) -> list[Seen]:
    """A camera (`frames`, again and again with new stamps) and a worker that takes the newest whenever it is free."""
    seen, begun, taken = [], clock.now, 0
    start_ns = START_NS + round(clock.now * 1e9)
    while clock.now < begun + seconds:
        arrived = int((clock.now - begun) * hz) + 1
        if arrived == taken:
            clock.now = begun + arrived / hz + 1e-9
            continue
        for i in range(max(taken, arrived - pipeline.config.window.size), arrived):
            frame = frames[i % len(frames)]
            while pipeline.room() == 0:
                pipeline.make_room()
            pipeline.add_frame(Frame(frame.image, start_ns + round(i / hz * 1e9), frame.camera))
        taken = arrived
        window = pipeline.take_window(1)
        try:
            submap = pipeline.reconstruct(window)
        except OutOfMemory:  # its second try did not fit either: the frames are lost
            continue
        latency_s = clock.now - (begun + (arrived - 1) / hz)
        seen.append(Seen(clock.now, latency_s, pipeline.governor.effort, submap.alignment.accepted))
        pipeline.observe(latency_s, len(window))
    return seen
