"""Long recordings: windows predicted in segments, and one run that takes the predictions and comes out as if there were none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fleet.streaming import Streaming

from come_ros.backbones import load_backbone
from come_ros.config import Config
from come_ros.datasets.sequence import open_sequence
from come_ros.errors import ConfigError, DatasetError
from come_ros.fleet.predictions import Kept
from come_ros.fleet.segments import OUTLINE, Task, main, outline, predict, segment_of
from come_ros.pipeline import ReconstructionPipeline

CONFIG = Config().replace(
    **{"backbone": "fleet.streaming:Streaming", "window.size": 4, "window.overlap": 2, "refine.mode": "none", "input.max_side": 112,
       "keyframe.min_flow": 10.0, "odometry.rate": "keyframe"}
)  # fmt: skip
COUNT = 40


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wall that passes by, faster and slower, so that not every image is a keyframe."""
    folder = tmp_path_factory.mktemp("segments") / "images"
    folder.mkdir()
    wall = cv2.resize(np.random.default_rng(0).integers(0, 255, (30, 200, 3), np.uint8), (1200, 180))
    place = 0.0
    for i in range(COUNT):
        place += 4 + 3 * np.sin(i / 3)
        cv2.imwrite(str(folder / f"{i:03}.png"), wall[:120, int(place) : int(place) + 160])
    return folder


def task(images: Path, folder: Path, segment: int | None = None, segments: int = 1, config: Config = CONFIG) -> Task:
    options = {"topic": None, "fps": 10.0, "rectify": config.rectify, "levels": config.input.range}
    return Task(str(images), options, {}, config.to_flat(), str(folder), segment, segments)


def results(images: Path, backbone: Any, refused: int = 0) -> list[np.ndarray]:
    """Everything that the pipeline makes of them, with so many windows refused."""
    pipeline, out = ReconstructionPipeline(CONFIG, backbone), []
    with open_sequence(images, fps=10.0) as source:
        for submap in pipeline.run(source.iter_frames()):
            out += [submap.odom_from_camera, submap.depth, submap.confidence]
    assert pipeline.counts["not_keyframe"] > 5 and pipeline.counts["windows"] > 8
    assert pipeline.counts["refused"] == refused
    return out


@pytest.fixture(scope="module")
def alone(images: Path) -> list[np.ndarray]:
    return results(images, load_backbone(CONFIG))


@pytest.mark.slow
@pytest.mark.parametrize("segments", [1, 3])
def test_the_result_is_that_of_a_run_without_segments(
    images: Path, alone: list[np.ndarray], segments: int, tmp_path: Path
) -> None:
    outline(task(images, tmp_path))
    for i in range(segments):
        predict(task(images, tmp_path, i, segments))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    predict(task(images, tmp_path, 0, segments))  # as after a restart
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    kept = Kept(load_backbone(CONFIG), tmp_path)
    again = results(images, kept)
    assert len(again) == len(alone) and all(map(np.array_equal, again, alone))
    assert kept.counts == {"found": len(json.loads((tmp_path / OUTLINE).read_text())), "made": 0}


@pytest.mark.slow
def test_segments_follow_the_windows_of_the_recording_whatever_is_refused_in_them(
    images: Path, alone: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole run, with its bundle, may accept what a segment alone would not."""
    outline(task(images, tmp_path))
    windows = json.loads((tmp_path / OUTLINE).read_text())
    monkeypatch.setattr(Streaming, "bad", (3, 5))
    for i in range(2):
        predict(task(images, tmp_path, i, 2))
    kept = Kept(load_backbone(CONFIG), tmp_path)
    results(images, kept, refused=4)
    # after a window that is refused, the next one shares other frames
    assert len(windows) - 2 * 4 <= kept.counts["found"] < len(windows)


@pytest.mark.slow
def test_a_prediction_that_is_missing_or_damaged_is_made_as_usual(
    images: Path, alone: list[np.ndarray], tmp_path: Path
) -> None:
    outline(task(images, tmp_path))
    predict(task(images, tmp_path, 0, 1))
    files = sorted(tmp_path.glob("*.safetensors"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:100])
    kept = Kept(load_backbone(CONFIG), tmp_path)
    again = results(images, kept)
    assert kept.counts == {"found": len(files) - 2, "made": 2}
    # the encoder has not seen the frames before in this run: the last bits may differ
    assert all(np.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True) for a, b in zip(again, alone, strict=True))


def test_predictions_of_other_images_or_parameters_are_not_taken(images: Path, tmp_path: Path) -> None:
    outline(task(images, tmp_path))
    predict(task(images, tmp_path, 0, 1))
    window = np.zeros((2, 84, 112, 3), np.uint8)
    kept = Kept(load_backbone(CONFIG), tmp_path)
    kept.predict(window)
    other = kept.configured(CONFIG.replace(**{"accelerator.ratio": 0.25}))
    other.predict(window)
    assert kept.counts == {"found": 0, "made": 2}  # shared with its copies
    assert other.description == kept.description and other.places == kept.places


def test_every_window_is_in_a_segment_and_each_has_those_before_it() -> None:
    windows = [[2 * i, 2 * i + 1, 2 * i + 2, 2 * i + 3] for i in range(10)]
    windows[6:] = [[100 + s for s in w] for w in windows[6:]]  # a break
    parts = [segment_of(windows, i, 3) for i in range(3)]
    assert parts[0] == windows[:3] and parts[1] == windows[1:7]
    assert parts[2] == windows[5:]  # the first after the break, and one before it that does no harm
    few = [segment_of(windows[:2], i, 4) for i in range(4)]  # more segments than windows
    assert [len(part) for part in few] == [0, 1, 2, 0]


def test_a_stream_cannot_be_cut(tmp_path: Path) -> None:
    backbone = load_backbone(CONFIG)
    backbone.causal = True
    with pytest.raises(ConfigError, match="stream"):
        Kept(backbone, tmp_path)


def test_errors_are_one_line(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([task(images, tmp_path, 0, 2).text()]) == 1  # without an outline
    assert capsys.readouterr().err.startswith("come_ros fleet: the outline in ")
    gone = dataclasses.replace(task(images, tmp_path), source=str(tmp_path / "nowhere"))
    assert main([gone.text()]) == 1 and "nowhere" in capsys.readouterr().err
    empty = dataclasses.replace(task(images, tmp_path), part={"start_s": 1000.0})
    with pytest.raises(DatasetError, match="no image"):
        outline(empty)
