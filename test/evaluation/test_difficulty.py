"""How hard a window is: worked out by hand."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from come_ros import geometry
from come_ros.evaluation.difficulty import difficulty, overlap, texture
from come_ros.evaluation.window import WindowTruth
from come_ros.tools.eval.measure import Scores, by_difficulty

K = np.array([[60.0, 0, 29.5], [0, 60.0, 19.5], [0, 0, 1]])
SHAPE = (40, 60)


def wall(distance: float) -> np.ndarray:
    return np.full(SHAPE, distance, np.float32)


def moved(x: float) -> np.ndarray:
    return geometry.transform(np.eye(3), np.array([x, 0.0, 0.0]))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_camera_next_to_another_sees_what_is_left_of_the_wall(share: float) -> None:
    # a wall at 2 m is 2 m wide in an image of 60 pixels at 60 pixels of focal length
    assert overlap(wall(2), wall(2), moved(2 * (1 - share)), K) == pytest.approx(share, abs=0.03)


def test_what_is_behind_something_or_behind_the_camera_is_not_seen() -> None:
    assert overlap(wall(2), wall(1), np.eye(4), K) == 0
    assert overlap(wall(2), wall(2.05), np.eye(4), K) == overlap(wall(2), wall(np.nan), np.eye(4), K) == 1
    around = geometry.transform(Rotation.from_euler("y", 180, degrees=True).as_matrix(), np.zeros(3))
    assert overlap(wall(2), wall(2), around, K) == 0
    assert np.isnan(overlap(wall(np.nan), wall(2), np.eye(4), K))


def test_each_measure_says_what_was_planted() -> None:
    images = np.zeros((3, *SHAPE, 3), np.uint8)
    images[..., ::4, :] = images[..., 1::4, :] = 80  # stripes: of every four steps, two of 40 in central differences
    assert texture(images) == pytest.approx(40, rel=0.05)
    poses = np.stack(
        [
            np.eye(4), moved(0.5),
            geometry.transform(Rotation.from_euler("y", 20, degrees=True).as_matrix(), np.array([0, 0, -0.1])),
        ]
    )  # fmt: skip
    depth = np.stack([wall(2)] * 3)
    depth[:, :, 30:] = 4
    world = geometry.transform(Rotation.from_rotvec([0.3, -1, 2]).as_matrix(), np.array([5.0, 6, 7])) @ poses
    found = difficulty(WindowTruth("a", 0, images, depth, world, K))
    assert found["turn_deg"] == pytest.approx(20) and found["depth_spread"] == pytest.approx(np.log(2) / 2, rel=1e-4)
    assert found["parallax"] == pytest.approx(0.5 / 3)
    # next to the first: half of the near part leaves the image, a quarter of the far part goes behind the near one
    two = difficulty(WindowTruth("a", 0, images[:2], depth[:2], world[:2], K))
    assert two["overlap"] == pytest.approx(0.5 * 0.5 + 0.5 * 0.75, abs=0.03) and two["turn_deg"] < 1e-6
    assert difficulty(WindowTruth("a", 0, images)).keys() == {"texture"}
    assert difficulty(WindowTruth("a", 0, images[:1], depth[:1], world[:1], K)).keys() == {"texture", "depth_spread"}


def test_thirds_are_sorted_by_the_measure_and_keep_their_errors() -> None:
    scores = Scores(
        rows={"dense": [{"delta": i / 12, "rotation_deg": float(i % 5)} for i in range(12)]},
        difficulty=[{"turn_deg": float(-i), "overlap": 1.0 if i else np.nan, "parallax": np.nan} for i in range(12)],
    )
    found = by_difficulty(scores)
    assert found.keys() == {"turn_deg"}  # of overlap, one window too few is known
    hard = found["turn_deg"][0]
    assert (hard["low"], hard["high"], hard["windows"]) == (-11, -8, 4)
    assert hard["errors"]["dense"] == {"delta": pytest.approx(9.5 / 12), "rotation_deg": 2.0}  # median of 3, 4, 0, 1
