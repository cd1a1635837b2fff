"""Whole recordings in `come_ros eval --frontier`: each variant without and with the bundle, next to what needs no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Truth, trajectory, truth_of
from tools.test_eval import never, write_folder

from come_ros.config import MIN_SIDE, Config
from come_ros.errors import Cancelled
from come_ros.evaluation.recordings import DepthScores
from come_ros.geometry import transform
from come_ros.pipeline import ReconstructionPipeline
from come_ros.tools import eval as tool
from come_ros.tools.eval.sources import Source
from come_ros.tools.eval.variants import DENSE, accelerated, dense, smaller, without_window
from come_ros.tools.eval.whole_recordings import (
    METRICS,
    MODES,
    baselines,
    compared,
    compared_table,
    whole,
    whole_table,
)

COUNT = 12


@pytest.fixture(scope="module")
def world() -> Truth:
    return truth_of(trajectory("curve", COUNT), height=84, width=112, focal=102.4)


@pytest.mark.slow
def test_every_variant_is_run_without_and_with_the_bundle(
    tmp_path: Path, world: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    class Noted(ReconstructionPipeline):
        def __init__(self, config: Config, backbone: Any) -> None:
            ran.append((config.accelerator.name, config.input.max_side, config.refine.mode))
            super().__init__(config, backbone)

    monkeypatch.setattr("come_ros.tools.eval.whole_recordings.ReconstructionPipeline", Noted)
    folder = write_folder(tmp_path / "seq-01", world)
    config = Config.from_flat({"keyframe.mode": "every", "device": "cpu", "input.max_side": 140, "threads": 1})
    backbone = tool._backbone(config)
    lesser = list(smaller(backbone, config, 112, 140))
    variants = [
        dense(backbone, config), accelerated(backbone, config, "come:ratio=0.75"), *lesser, *without_window(backbone, config),
    ]  # fmt: skip
    about = whole(Source(str(folder), config), variants, never)
    assert about is not None
    run = [v for v in lesser if max(v.backbone.size) >= MIN_SIDE]
    assert 0 < len(run) < len(lesser)
    names = [DENSE, "come ratio=0.75", *(v.name for v in run)]
    assert list(about["variants"]) == names, (
        "neither without a window nor on images that are too small for the pipeline"
    )
    for name, modes in about["variants"].items():
        assert list(modes) == list(MODES)
        for mode, row in modes.items():
            assert row["read"] == COUNT and 0 < row["used"] <= COUNT
            assert (
                row["kept_tokens"] == pytest.approx(1.0)
                if name == DENSE
                else row["kept_tokens"] < 1.0 or "resolution" in name
            )
            assert row["refined"] == 0 if mode == "none" else True
    every = [("none", 140), ("come", 140), *(("none", max(v.backbone.size)) for v in run)]
    assert ran == [(*of, mode) for of in every for mode in MODES]
    assert len({modes["none"]["abs_rel_once"] for modes in about["variants"].values()}) == len(names)
    text = "\n".join(whole_table(about))
    assert (
        all(f"| {name} |" in text for name in names)
        and "| *straight line* |" in text
        and "| *constant depth* |" in text
    )


def test_what_needs_no_model_is_scored_alike() -> None:
    truth = {i: transform(np.eye(3), [0.1 * i, 0.02 * np.sin(i), 0.0]) for i in range(20)}
    rows = baselines(truth, DepthScores())
    assert rows["straight line"]["ate"] < 0.02 < rows["no motion"]["ate"]
    assert rows["constant velocity"]["step"] < rows["no motion"]["step"]
    assert "constant depth" not in rows, "no depth is known"
    depth = DepthScores()
    depth.add(np.full((8, 8), 2.0, np.float32), np.linspace(1, 3, 64, dtype=np.float32).reshape(8, 8))
    assert baselines({}, depth).keys() == {"constant depth", "mean depth map"}


def test_errors_are_compared_with_the_dense_model_of_the_same_mode() -> None:
    def about(none: float, bundle: float) -> dict:
        rows = {DENSE: (1.0, 0.1), "come": (none, bundle)}
        return {
            "baselines": {},
            "variants": {
                name: {
                    mode: dict.fromkeys(METRICS, None) | {"ate": value} for mode, value in zip(MODES, both, strict=True)
                }
                for name, both in rows.items()
            },
        }

    found = compared({"a": about(2.0, 0.1), "b": about(0.5, 0.11), "c": about(1.0, 0.102)})
    none, bundle = (found[mode]["ate"]["come"] for mode in MODES)
    assert none["ratio"] == pytest.approx(1.0) and (none["worse"], none["better"]) == (1, 1)
    assert bundle["ratio"] == pytest.approx((1.0 * 1.1 * 1.02) ** (1 / 3)) and (bundle["worse"], bundle["better"]) == (
        1,
        0,
    )
    assert set(found["none"]) == {"ate"}, "what is unknown is left out"
    assert "1.00 (0.50 to 2.00); worse 1, better 1 of 3" in "\n".join(compared_table(found))
    assert compared_table(compared({})) == []


def test_recordings_that_were_complete_are_kept_when_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(source: Source, *_: Any) -> dict[str, Any]:
        if source.name == "b":
            raise Cancelled("on request")
        return {"variants": {}, "baselines": {}}

    monkeypatch.setattr(tool, "whole", stops)
    result: dict[str, Any] = {}
    sources = [Source(name, Config(), label=name) for name in ("rooms", "a", "b", "c")]
    with pytest.raises(Cancelled):
        tool._add_whole(result, sources, [], never)
    assert list(result["whole"]) == ["a"]
