"""Keyframes in a view: their pictures stand in rows, with the truth next to the estimate, and of cameras that stand close one is drawn."""

from __future__ import annotations

import io
from dataclasses import replace

import made_results as made
import numpy as np
import pytest
from PIL import Image

from come_ros.geometry import rotation_from_vector, transform
from come_ros.results import ResultFrame
from come_ros.types import U8
from come_ros.view.keyframes import MOST_FRUSTA, PANE_HEIGHT, Shown, frusta_of, pictures_of, shown_of

FRAME = ResultFrame(1, made.picture(0), made.depth(0), made.confidence(0), made.K, np.eye(4), made.picture(0) // 3)
WIDTH = PANE_HEIGHT * made.WIDTH // made.HEIGHT


def panes(data: bytes, columns: int, count: int) -> list[U8]:
    """The first `count` pictures of a JPEG, without the names on them."""
    grid = np.asarray(Image.open(io.BytesIO(data)))
    cells = (divmod(i, columns) for i in range(count))
    return [grid[r * PANE_HEIGHT + 40 : (r + 1) * PANE_HEIGHT, c * WIDTH : (c + 1) * WIDTH] for r, c in cells]


@pytest.mark.parametrize("columns", [2, 3])
def test_pictures_stand_in_rows(columns: int) -> None:
    data, parts, note = pictures_of(FRAME, columns)
    assert parts == ("image", "depth", "confidence", "merged tokens dark") and not note
    assert Image.open(io.BytesIO(data)).size == (columns * WIDTH, 2 * PANE_HEIGHT)
    first, _, _, merged = panes(data, columns, 4)
    below = made.picture(0)[4:].astype(float).mean(axis=(0, 1))  # the name covers the first rows
    np.testing.assert_allclose(first.mean(axis=(0, 1)), below, atol=4)
    np.testing.assert_allclose(merged.mean(axis=(0, 1)), below / 3, atol=4)
    same = replace(FRAME, overlay=made.picture(0), confidence=None)
    assert pictures_of(same, columns)[1] == ("image", "depth")  # nothing was merged


def test_true_depth_and_error_stand_next_to_the_depth() -> None:
    real = 4 * made.depth(0)
    real[12:] *= 1.25  # of a half the depth is too small
    real[:, :2] = 0  # unknown
    data, parts, note = pictures_of(replace(FRAME, true_depth=real), 3)
    assert parts == ("image", "depth", "true depth", "error", "confidence", "merged tokens dark")
    assert "depth times 4" in note or "depth times 5" in note
    share = float(note.partition("the error is ")[2].partition("%")[0])
    assert 9 <= share <= 13  # a half of it, by 20 or 25 %
    _, depth, true, error, *_ = panes(data, 3, 6)
    upper, lower = error[: PANE_HEIGHT // 3, 40:].astype(int), error[PANE_HEIGHT // 2 :, 40:].astype(int)
    assert abs(upper.mean() - lower.mean()) > 40  # one is right, and dark
    assert np.ptp(true[:, 40:].reshape(-1, 3), axis=0).max() > 30 and depth.shape == true.shape
    unknown = replace(FRAME, true_depth=np.full_like(real, np.nan))
    assert pictures_of(unknown)[1:] == (("image", "depth", "confidence", "merged tokens dark"), "")
    shown = shown_of(replace(FRAME, true_depth=real), 2.5)
    assert shown.words(3, 7).startswith("keyframe 3 of 7, 2.50 s: image, depth, true depth") and note in shown.words(
        3, 7
    )


def camera(place: float, turn: float = 0.0) -> Shown:
    pose = transform(rotation_from_vector([0.0, turn, 0.0]), [place, 0.0, 0.0])
    return Shown(0, 0.0, pose, 1.0, 1.3, made.picture(0), b"", ())


def test_of_cameras_that_stand_close_and_look_alike_one_is_drawn() -> None:
    cameras = [camera(0.0), camera(0.01), camera(0.02), camera(0.2), camera(0.21, turn=0.6), camera(0.22, turn=0.61)]
    assert frusta_of(cameras, 1.0) == [0, 3, 4]
    apart = [camera(float(i)) for i in range(3 * MOST_FRUSTA)]
    drawn = frusta_of(apart, 1.0)
    assert len(drawn) == MOST_FRUSTA and drawn[0] == 0 and drawn[-1] == 3 * MOST_FRUSTA - 1
    assert frusta_of([], 1.0) == []
