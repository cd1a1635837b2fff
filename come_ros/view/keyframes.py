"""Keyframes as they are shown: where their cameras stand, which of them are drawn, and their pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..results import ResultFrame
from ..types import F64, U8
from . import COLUMNS
from .colours import painted, span

PANE_HEIGHT = 240  # px, of each of the pictures of a keyframe
MOST_ERROR = 0.5  # of the distance: the last colour of the error
MOST_FRUSTA, FRUSTUM_SPACING, FRUSTUM_TURN = 40, 0.04, math.radians(20)  # spacing: in the size of the scene
THUMBNAIL_WIDTH = 160  # px, of the picture in a camera's frustum


@dataclass(frozen=True, eq=False)
class Shown:
    """A keyframe. pose: (4, 4) world_from_camera. fov: vertical, rad. aspect: width over height. thumbnail: (h, w, 3). pictures: JPEG of
    image, depth, confidence and so on, see `pictures_of`. parts: what of these it holds. note: on the error, "" without truth."""

    stamp_ns: int
    time_s: float
    pose: F64
    fov: float
    aspect: float
    thumbnail: U8
    pictures: bytes
    parts: tuple[str, ...]
    note: str = ""

    def words(self, number: int, count: int) -> str:
        """For its caption: it is the `number`-th of `count`."""
        text = f"keyframe {number} of {count}, {self.time_s:.2f} s: {', '.join(self.parts)}"
        return f"{text}; {self.note}" if self.note else text


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of `count` rows, evenly spread, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(float(row)) for row in np.linspace(0, count - 1, most)})


def frusta_of(keyframes: Sequence[Shown], size: float) -> list[int]:
    """Numbers of the keyframes whose cameras are drawn: those that stand apart from, or look elsewhere than, the last one that is; of
    many, evenly chosen ones. size: of the scene."""
    kept: list[int] = []
    for number, shown in enumerate(keyframes):
        last = keyframes[kept[-1]].pose if kept else None
        if (
            last is None
            or np.linalg.norm(shown.pose[:3, 3] - last[:3, 3]) > FRUSTUM_SPACING * size
            or shown.pose[:3, 2] @ last[:3, 2] < math.cos(FRUSTUM_TURN)
        ):
            kept.append(number)
    return [kept[row] for row in evenly(len(kept), MOST_FRUSTA)]


def shown_of(frame: ResultFrame, time_s: float, columns: int = COLUMNS) -> Shown:
    """A keyframe as it is shown."""
    height, width = frame.depth.shape
    image = frame.overlay if frame.image is None else frame.image
    if image is None:
        image = np.full((height, width, 3), 128, np.uint8)
    pictures, parts, note = pictures_of(frame, columns)
    small = cv2.resize(
        image, (THUMBNAIL_WIDTH, max(1, round(THUMBNAIL_WIDTH * height / width))), interpolation=cv2.INTER_AREA
    )
    fov = 2 * math.atan2(height / 2, float(frame.intrinsics[1, 1]))
    return Shown(
        frame.stamp_ns, time_s, frame.world_from_camera, fov, width / height, np.asarray(small, np.uint8), pictures,
        parts, note,
    )  # fmt: skip


def pictures_of(frame: ResultFrame, columns: int = COLUMNS) -> tuple[bytes, tuple[str, ...], str]:
    """JPEG of image, depth, true depth, error, confidence and what was merged, as far as they are known, row by row with their names on
    them; these names; and what the error is, in words, "" without truth."""
    panes: list[tuple[str, U8]] = []
    image = frame.overlay if frame.image is None else frame.image
    if image is not None:
        panes.append(("image", image))
    real, scale = frame.true_depth, math.nan
    if real is not None:
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where((frame.depth > 0) & (real > 0), real / frame.depth, np.nan)
        scale = float(np.nanmedian(ratio)) if np.isfinite(ratio).any() else math.nan
    note = ""
    if real is None or not math.isfinite(scale):
        panes.append(("depth", painted(frame.depth, "turbo", near_first=True)))
    else:
        limits = span(real)  # one scale of colours for both
        with np.errstate(invalid="ignore"):
            error = np.abs(scale * frame.depth / np.where(real > 0, real, np.nan) - 1)
        panes += [
            ("depth", painted(scale * frame.depth, "turbo", limits, near_first=True)),
            ("true depth", painted(np.where(real > 0, real, np.nan), "turbo", limits, near_first=True)),
            ("error", painted(error, "magma", (0.0, MOST_ERROR))),
        ]
        note = (
            f"depth times {scale:.3g} is compared with the truth, {limits[0]:.1f} (red) to {limits[1]:.1f} m; the error is "
            f"{np.nanmean(error):.0%} of the distance in the mean, white is {MOST_ERROR:.0%} or more"
        )
    if frame.confidence is not None:
        panes.append(("confidence", painted(frame.confidence, "viridis")))
    if frame.overlay is not None and frame.image is not None and (frame.overlay != frame.image).any():
        panes.append(("merged tokens dark", frame.overlay))
    height, width = frame.depth.shape
    grid = _in_rows([_labelled(pane, name, round(PANE_HEIGHT * width / height)) for name, pane in panes], columns)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(grid, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return data.tobytes(), tuple(name for name, _ in panes), note


def _labelled(picture: U8, name: str, width: int) -> U8:
    """(PANE_HEIGHT, width, 3), with its name in the upper left corner."""
    out = cv2.resize(picture, (width, PANE_HEIGHT), interpolation=cv2.INTER_LINEAR)
    for colour, thickness in (((0, 0, 0), 6), ((255, 255, 255), 2)):  # readable at a third of its size
        cv2.putText(out, name, (8, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.95, colour, thickness, cv2.LINE_AA)
    return np.asarray(out, np.uint8)


def _in_rows(panes: list[U8], columns: int) -> U8:
    """Row by row; white where the last row lacks some."""
    columns = min(columns, len(panes))
    panes = panes + [np.full_like(panes[0], 255)] * (-len(panes) % columns)
    return np.concatenate([np.concatenate(panes[i : i + columns], axis=1) for i in range(0, len(panes), columns)])
