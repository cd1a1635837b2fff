"""The bench runs, with ROS and without, and says what it measured."""

from __future__ import annotations

import importlib.util
import json

import pytest

from come_ros.tools import cli
from come_ros.tools.bench import pipeline

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install '.[tools]'")

STAGES = [
    "decode",
    "rectify",
    "keyframe test",
    "preprocess",
    "alignment",
    "the rest of the window",
    "mask",
    "points",
    "messages",
]


@pytest.mark.ros
@pytest.mark.parametrize("with_ros", [True, False], ids=["ros", "no ros"])
def test_every_stage_is_timed_and_told(with_ros, tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    if not with_ros:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rclpy" else found(name))
    elif found("rclpy") is None:
        pytest.skip("rclpy is not installed")
    monkeypatch.setattr(pipeline, "WARM_UP", 1)
    monkeypatch.setattr(pipeline, "MAP_POINTS", 20_000)
    monkeypatch.setattr(pipeline, "MAP_FRAME", 2_000)
    for name, value in pipeline.os.environ.items():  # of the DDS domain it takes for itself: put back afterwards
        monkeypatch.setenv(name, value)
    path = tmp_path / "cost.json"
    assert cli.main(["bench", "--pipeline", "--repeats", "3", "--json", str(path)]) == 0
    told, result = capsys.readouterr().out, json.loads(path.read_text())
    assert result["repeats"] == 3 and result["ros"] == with_ros and result["load_after"] >= 0
    messages, kept, *frames = result["cases"].items()
    assert [name for name, _ in frames] == ["640x480 frame, model image 112x84", "640x480 frame, model image 518x392"]
    for _, stages in frames:
        assert list(stages)[: len(STAGES)] == STAGES and ("publish" in stages) == with_ros
        whole = stages["**frame**: all before publishing"]["median_ms"]
        assert whole >= max(stages[name]["least_ms"] for name in STAGES)
        assert all(0 <= v["least_ms"] <= v["median_ms"] <= v["p95_ms"] < 10_000 for v in stages.values())
        assert all(f"| {name} |" in told for name in stages)
    assert kept[0] == "map of 20000 voxels, a frame of 2000 points" and ("publish" in kept[1]) == with_ros
    assert ("publish PointCloud2" in messages[1]) == with_ros
    assert "| **cloud**: build and publish |" in told and told.count(" | 10 |") == 2
    assert ("nothing was published" in told) != with_ros
    assert not capsys.readouterr().err


def test_stages_add_up_repeat_by_repeat():
    stages = pipeline.Stages(warm_up=1)
    for ms in (100.0, 1.0, 3.0):
        stages.add("a", ms)
        stages.add("b", 2 * ms)
    stages.sum("both", "a", "b", "never timed")
    assert stages.summary()["both"] == {"median_ms": 6.0, "least_ms": 3.0, "p95_ms": pytest.approx(8.7)}
