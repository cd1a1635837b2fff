"""The overview picture: its title fits whatever there is to say."""

import numpy as np
import pytest

from come_ros.tools.report.picture import SEPARATOR, Overview, Shown, _view, chosen, draw, error_of, evenly, wrapped


def test_a_long_title_goes_on_in_the_next_line_and_loses_nothing() -> None:
    parts = [f"figure {i} {'x' * (5 * i)}" for i in range(8)]
    title = "come_ros\n" + SEPARATOR.join(parts)
    lines = wrapped(title, 60).splitlines()
    assert lines[0] == "come_ros" and len(lines) > 3
    assert SEPARATOR.join(lines[1:]).split(SEPARATOR) == parts
    assert all(len(line) <= 60 or SEPARATOR not in line for line in lines)
    assert wrapped(title, 1000) == title


def test_a_long_sentence_breaks_at_spaces() -> None:
    sentence = "verdict: doubtful: " + "some reason or other; " * 10
    lines = wrapped(f"come_ros\n{sentence}\na{SEPARATOR}b", 60).splitlines()
    assert all(len(line) <= 60 for line in lines) and " ".join(lines[1:-1]).split() == sentence.split()
    assert lines[-1] == f"a{SEPARATOR}b"


def test_the_best_the_median_and_the_worst_are_shown_where_there_is_truth() -> None:
    assert chosen([0.3, 0.1, 0.5, 0.2, 0.4]) == [1, 0, 2]
    assert chosen([float("nan")] * 9) == evenly(9)
    assert chosen([0.2, 0.1]) == [0, 1] and chosen([0.2]) == [0]


def test_the_error_of_a_frame_is_that_of_its_scaled_depth() -> None:
    real = np.array([[1.0, 2.0], [4.0, np.nan]], np.float32)
    assert error_of(Shown(0, None, real / 3, real, real)) == pytest.approx(0, abs=1e-6)
    assert error_of(Shown(0, None, np.array([[1, 1], [1, 1]], np.float32), real, real)) == pytest.approx(
        (1 + 0 + 0.5) / 3
    )
    assert np.isnan(error_of(Shown(0, None, real, real, None)))


def test_the_view_looks_along_the_camera_from_above() -> None:
    right, up, ahead = _view(np.array([[0.0, 2.0, 0.0]]))
    assert right == pytest.approx([1, 0, 0]) and ahead[1] > 0.5 and ahead[2] < -0.5 and up[2] > 0.5
    for ways in ([[0, 0, 1.0]], [[1.0, 0, 0], [-1.0, 0, 0]]):  # straight up; everywhere
        axes = np.stack(_view(np.array(ways)))
        assert axes @ axes.T == pytest.approx(np.eye(3))


@pytest.mark.slow
@pytest.mark.parametrize("truth", [0, 1, 3])
def test_the_picture_is_drawn_with_and_without_truth(tmp_path, truth: int) -> None:
    depth = np.linspace(1, 2, 12, dtype=np.float32).reshape(3, 4)
    frames = [Shown(i, None, depth, depth, 2 * depth if i < truth else None) for i in range(3)]
    cloud = np.random.default_rng(0).random((50, 3))
    draw(tmp_path / "p.png", Overview(frames, 0, cloud, cloud.astype(np.float32), {0: np.eye(4)}), "title")
    assert (tmp_path / "p.png").stat().st_size > 5000
