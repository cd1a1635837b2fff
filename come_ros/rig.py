"""Where cameras sit on a robot: extrinsics as they are given."""

from __future__ import annotations

import numpy as np

from .errors import ConfigError
from .geometry import matrix_from_quat_xyzw, transform
from .types import F64

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
