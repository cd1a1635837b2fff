"""What a view shows: the points of the map with when and from where they were seen, paths on each other, pictures side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_results as made
import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install '.[tools]'")
pytest.importorskip("mcap", reason="mcap is not installed: pip install '.[tools]'")

from come_ros.results import open_results
from come_ros.view import content as module
from come_ros.view.colours import painted
from come_ros.view.content import Content, _in_unit_of, content_of, limits_of, painted_cloud
from come_ros.view.content import Path as Path_


@pytest.fixture(scope="module")
def content(out: Path) -> Content:
    return content_of(open_results(out))


def test_the_cloud_is_the_maps_with_when_it_was_seen(content: Content) -> None:
    cloud, step = content.cloud, made.STEP_NS * 1e-9
    assert len(cloud) == len(made.cloud(12)) and content.dropped == 0
    np.testing.assert_allclose(cloud.places[:, 2], made.WALL_Z, rtol=1e-4)
    of_frame = np.repeat(np.arange(12), len(cloud) // 12)
    assert cloud.seen_s.min() == 0 and cloud.seen_s.max() <= 11 * step + 1e-3
    # a point of a frame was seen first in that frame, or in an earlier one; a little later at the border of a cell
    assert (cloud.seen_s <= (of_frame + 1.5) * step).mean() > 0.98
    assert len(np.unique(np.rint(cloud.seen_s / step))) == 12  # the camera moves: each frame shows something new
    for frame in (0, 11):
        rows = of_frame == frame
        far = np.linalg.norm(cloud.places[rows] - made.pose(frame)[:3, 3], axis=1)
        assert np.median(np.abs(cloud.range[rows] / far - 1)) < 0.2


def test_sightings_are_bounded_however_long_the_recording_is(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    whole = module._cloud_of

    def counted(points: Any, sightings: list[Any], seen_s: list[Any]) -> Any:
        taken.extend(map(len, sightings))
        return whole(points, sightings, seen_s)

    monkeypatch.setattr(module, "MOST_SAMPLES", 240)
    monkeypatch.setattr(module, "_cloud_of", counted)
    cloud = content_of(open_results(out)).cloud
    assert len(taken) == 12 and min(taken) >= 20 and sum(taken) < 2 * 240
    assert np.isfinite(cloud.range).all()


def test_paths_lie_on_each_other(content: Content) -> None:
    assert content.path is not None and content.odometry is not None and content.truth is not None
    np.testing.assert_allclose(content.path.places, [made.pose(i)[:3, 3] for i in range(12)], atol=1e-8)
    # the odometry's unit is another one than the metre, as the results say: it is drawn in metres
    np.testing.assert_allclose(content.odometry.places, content.path.places, atol=1e-6)
    miss = np.linalg.norm(
        content.truth.places - content.path.places, axis=1
    )  # a straight line against a nearly straight one
    assert miss.max() < 0.1 and content.duration_s == pytest.approx(11 * made.STEP_NS * 1e-9)
    assert content.up @ [0, -1, 0] > 0.9 and content.size > 1


@pytest.mark.parametrize(
    ("same", "length", "expected"),
    [(True, 3.0, 1.0), (False, 3.0, 3.0), (False, 1.2, 1.2), (None, 3.0, 3.0), (None, 1.2, 1.0), (None, 0.4, 0.4)],
)
def test_odometry_is_drawn_in_the_unit_of_the_map(same: bool | None, length: float, expected: float) -> None:
    times, places = np.arange(5.0), np.arange(15.0).reshape(5, 3)
    path = Path_(times[1:4], length * places[1:4])  # the map has only a part of it
    drawn = _in_unit_of(path, Path_(times, places), same)
    assert drawn is not None
    np.testing.assert_allclose(drawn.places, expected * places)
    assert _in_unit_of(None, None, same) is None


def test_more_points_or_keyframes_than_wanted_are_left_out_evenly_and_counted(out: Path) -> None:
    content = content_of(open_results(out), most_points=1000, most_keyframes=3)
    assert len(content.cloud) == 1000 and content.dropped == len(made.cloud(12)) - 1000
    assert [k.stamp_ns for k in content.keyframes] == [made.stamps(12)[i] for i in (0, 6, 11)]
    assert np.ptp(content.cloud.seen_s) > 10 * made.STEP_NS * 1e-9
    assert not content_of(open_results(out), most_keyframes=0).keyframes


def test_a_recording_alone_is_shown_too(tmp_path: Path) -> None:
    content = content_of(open_results(made.demo_results(tmp_path / "demo", 3, names=())))
    assert len(content.cloud) and content.truth is None and content.keyframes[0].parts == ("depth",)
    assert content.world == "odometry frame"


def test_colours_go_from_end_to_end(content: Content) -> None:
    values = np.array([0.0, 1.0, np.nan], np.float32)
    low, high, unknown = painted(values, "turbo", (0.0, 1.0)).astype(int)
    assert low[2] > low[0] and high[0] > high[2] and (unknown == 90).all()
    assert (painted(values, "turbo", (0.0, 1.0), near_first=True)[1] == low).all()
    assert (painted(np.full((2, 2), np.nan), "plasma") == 90).all()
    limits = limits_of(content.cloud, content.up)
    assert painted_cloud(content.cloud, "colour", content.up, limits) is content.cloud.colours
    for mode in ("confidence", "height", "age"):
        colours = painted_cloud(content.cloud, mode, content.up, limits)
        assert colours.shape == (len(content.cloud), 3) and len(np.unique(colours, axis=0)) > 5
    higher = content.cloud.at(np.argsort(content.cloud.places @ content.up))
    heights = painted_cloud(higher, "height", content.up, limits).astype(int)
    assert heights[0, 2] > heights[-1, 2] and heights[-1, 0] > heights[0, 0]
