"""Poses of the cameras on a robot: given extrinsics, and their comparison with a model's poses.

A model predicts the pose of every camera at every instant independently. With known extrinsics there is only one pose per instant,
that of the rig: the cameras' predictions of it are averaged, and each camera is placed accordingly. The rig is in metres, the
window in its own unit, so their ratio is estimated as well; the window keeps its unit.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ..errors import ConfigError
from ..geometry import average_rotation, inverse, is_finite_pose, matrix_from_quat_xyzw, rotation_angle, transform
from ..types import F64, Frame, Prediction, RigResidual

FORM = "'x y z qx qy qz qw' (metres, and a quaternion that is not zero)"
TOOL = "`ros2 run tf2_ros tf2_echo <base> <camera frame>` shows them"


def pose_of_words(text: str, name: str) -> F64 | None:
    """(4, 4) of "x y z qx qy qz qw", None of "". Raises ConfigError, naming the parameter."""
    if not text.strip():
        return None
    try:
        numbers = np.array([float(word) for word in text.replace(",", " ").split()])
    except ValueError:
        numbers = np.zeros(0)
    if numbers.shape != (7,) or not np.isfinite(numbers).all() or np.linalg.norm(numbers[3:]) < 1e-6:
        raise ConfigError(f"{name} is {text!r}, but must be seven numbers {FORM}, or empty: {TOOL}")
    return transform(matrix_from_quat_xyzw(numbers[3:]), numbers[:3])


def parse_extrinsics(text: str) -> dict[str, F64]:
    """Optical frame -> base_from_camera (4, 4), of "frame: x y z qx qy qz qw; other_frame: ...". Raises ConfigError."""
    found: dict[str, F64] = {}
    for part in filter(str.strip, text.split(";")):
        frame, colon, words = part.partition(":")
        frame = frame.strip().lstrip("/")
        pose = pose_of_words(words, f"extrinsics of {frame or 'a frame without a name'}")
        if not colon or not frame or pose is None or frame in found:
            raise ConfigError(
                f"extrinsics has the part {part.strip()!r}, but each must be 'camera_frame: x y z qx qy qz qw', with ; between them and "
                f"each frame once: {TOOL}"
            )
        found[frame] = pose
    return found


MOST_RESIDUAL = np.deg2rad(
    20.0
)  # difference of extrinsics and images: a model errs by a few degrees, a wrong frame by 90
MIN_BASELINE = 1e-3  # m; closer cameras determine neither direction nor length


def hold_rig(frames: tuple[Frame, ...], cameras: int, prediction: Prediction) -> tuple[Prediction, RigResidual | None]:
    """`prediction` of `frames`, T sets of K = `cameras`, with the cameras placed by their base_from_camera, and how far off they
    were.

    Unchanged, with None, for a single camera, with unknown extrinsics, or with invalid poses (the aligner refuses those).
    """
    known = [frame.base_from_camera for frame in frames]
    poses = np.asarray(prediction.window_from_camera, np.float64)
    if cameras < 2 or any(k is None for k in known) or not is_finite_pose(poses).all():
        return prediction, None
    sets = (len(frames) // cameras, cameras, 4, 4)
    base_from_camera, poses = np.stack([k for k in known if k is not None]).reshape(sets), poses.reshape(sets)

    # poses of the other cameras relative to the first of each set, by both
    ours, theirs = inverse(poses[:, :1]) @ poses, inverse(base_from_camera[:, :1]) @ base_from_camera
    rotation = rotation_angle(np.swapaxes(theirs[:, 1:, :3, :3], -1, -2) @ ours[:, 1:, :3, :3])
    way, baseline = ours[:, 1:, :3, 3], theirs[:, 1:, :3, 3]
    length, metres = np.linalg.norm(way, axis=-1), np.linalg.norm(baseline, axis=-1)
    apart = (metres > MIN_BASELINE) & (length > 0)
    units_per_metre, direction = 0.0, float("nan")
    if apart.any():
        units_per_metre = float(np.median(length[apart] / metres[apart]))
        cosine = (way * baseline).sum(axis=-1)[apart] / (length * metres)[apart]
        direction = float(np.median(np.arccos(np.clip(cosine, -1.0, 1.0))))

    # lever arms from the centre of the rig, so that their unit matters as little as possible
    middle = base_from_camera[..., :3, 3].mean(axis=1)
    held = np.empty_like(poses)
    for t in range(len(poses)):
        turn = average_rotation(poses[t, :, :3, :3] @ np.swapaxes(base_from_camera[t, :, :3, :3], -1, -2))
        arms = units_per_metre * (base_from_camera[t, :, :3, 3] - middle[t]) @ turn.T
        place = (poses[t, :, :3, 3] - arms).mean(axis=0)
        held[t] = transform(turn @ base_from_camera[t, :, :3, :3], place + arms)
    residual = RigResidual(float(np.median(rotation)), direction)
    return dataclasses.replace(prediction, window_from_camera=held.reshape(-1, 4, 4)), residual


def rig_remark(residual: RigResidual | None) -> str:
    """A remark on the extrinsics of several cameras, "" if they are consistent."""
    if residual is None:
        return "the extrinsics of the cameras are unknown, so each is placed by the model: start robot_state_publisher, or give extrinsics"
    if residual.rotation > MOST_RESIDUAL:
        return (
            f"the cameras' extrinsics and what the images show differ by {np.rad2deg(residual.rotation):.0f} deg: check TF or extrinsics "
            f"(optical frames: z forward, x right, y down), and that the images belong to those frames"
        )
    return ""
