"""`come_ros adapt`: weights, a card, scores next to those before, and a verdict that a bad result cannot escape."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import Truth, trajectory, truth_of
from models import tiny
from tools.test_eval import write_folder

from come_ros.accelerators import make_accelerator
from come_ros.accelerators.confidence import ConfidencePredictor, save_predictor
from come_ros.backbones.checkpoint import load_model, save_checkpoint
from come_ros.camera.preprocess import crop_depth, crop_intrinsics, image_plan, preprocess
from come_ros.companions import made_for, said_by
from come_ros.config import Config
from come_ros.datasets.part import Part
from come_ros.errors import DatasetError
from come_ros.tools import adapt, cli
from come_ros.tools.adapt import split_by_time
from come_ros.tools.eval.sources import Source
from come_ros.tools.report.adapted import HARM, rows_of, table, verdict, verdict_line
from come_ros.tools.report.next_steps import of_adapted
from come_ros.training import lessons
from come_ros.training.adaptation import Adaptation
from come_ros.training.lessons import Keyframe
from come_ros.training.rehearsal import Rehearsal
from come_ros.types import Frame
from come_ros.weights import read_checkpoint

COUNT = 30
RESULTS = {"weights.safetensors", "come_weights.safetensors", "card.md", "scores.json", "log.json"}


@pytest.fixture(scope="module")
def world() -> Truth:
    return truth_of(trajectory("curve", COUNT), height=84, width=112, focal=102.4)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, world: Truth) -> Path:
    return write_folder(tmp_path_factory.mktemp("adapt") / "seq-01", world)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    model = tiny("vggt", seed=3, std=0.05)
    save_checkpoint(str(path), model, torch.float32)
    torch.manual_seed(0)
    predictor = ConfidencePredictor(model.shape.encoder_width, 8)
    save_predictor(str(path.with_name("come_small.safetensors")), predictor, 0, made_for(str(path)))
    return path


@pytest.fixture(autouse=True)
def few_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rehearsal, "of", functools.partial(Rehearsal.of, rooms=1, count=2))
    for name, value in {"BATCHES": 2, "FRAMES": 4, "STEPS": 20}.items():
        monkeypatch.setattr(adapt, f"PREDICTOR_{name}", value)


@pytest.fixture
def true_keyframes(monkeypatch: pytest.MonkeyPatch, world: Truth) -> list[int]:
    """Instead of a bundle, which finds nothing in such images: the truth, in another unit. What was asked for, by number of images."""
    asked: list[int] = []
    by_image = {image.tobytes(): i for i, image in enumerate(world.images)}

    def keyframes(pipeline: Any, frames: Iterable[Frame], stop: Any = None) -> list[Keyframe]:
        out = []
        for frame in frames:
            plan = image_plan(pipeline.backbone, frame.image.shape[1], frame.image.shape[0], 70)
            i = by_image[frame.image.tobytes()]
            pose = world.world_from_camera[i].copy()
            pose[:3, 3] *= 3
            depth = 3 * crop_depth(world.depth[i], plan)
            rows, columns = np.mgrid[2 : plan.height : 6, 2 : plan.width : 6].reshape(2, -1)
            out.append(
                Keyframe(
                    frame.stamp_ns, preprocess(frame.image, plan), pose, crop_intrinsics(world.intrinsics, plan),
                    np.log(depth).astype(np.float16), np.zeros(depth.shape, np.float16), rows, columns,
                    np.log(depth[rows, columns]), np.ones(len(rows), np.float32), 1, True,
                )
            )  # fmt: skip
        asked.append(len(out))
        return out

    monkeypatch.setattr(lessons, "keyframes", keyframes)
    return asked


def words(recording: Path, weights: Path, out: Path, *more: str) -> list[str]:
    small = ("device=cpu", "threads=1", "window.size=2", "keyframe.mode=every", "input.max_side=112")
    given = [word for each in small for word in ("--set", each)]
    return [
        "adapt",
        "--source",
        str(recording),
        "-o",
        str(out),
        "--weights",
        str(weights),
        "--steps",
        "2",
        *given,
        *more,
    ]


@pytest.mark.slow
def test_a_recording_gives_weights_a_card_and_scores(
    recording: Path, weights: Path, true_keyframes: list[int], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert cli.main([*words(recording, weights, out), "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert {path.name for path in out.iterdir()} == RESULTS
    assert json.loads((out / "scores.json").read_text())["verdict"] == result["verdict"]
    assert true_keyframes == [20, 10], "the last third is apart, and the first part is never asked for it"
    assert result["keyframes"] == {"read": 20, "gap": 2, "left_out": 0, "learned_from": 14, "validation": 4}
    scores = result["scores"]["seq-01"]
    assert set(scores["whole"]) == {"none", "bundle"} and scores["whole"]["none"]["after"]["read"] == 10
    assert scores["windows"]["before"]["windows"] == scores["agreement"]["after"]["windows"] == 2
    assert scores["windows"]["before"]["abs_rel"] == pytest.approx(scores["agreement"]["before"]["abs_rel"], abs=0.05)
    assert "constant abs_rel" in scores["windows"]["trivial"]
    assert set(scores["merged"]) == {"before", "after", "trivial"} and scores["merged"]["after"]["windows"] == 2
    assert result["predictor"]["after"] > result["predictor"]["before"]
    with_come = Config(weights=str(out / "weights.safetensors")).replace(**{"accelerator.name": "come"})
    assert make_accelerator(with_come, load_model("", with_come.weights).shape, with_come.weights).name == "come"
    assert made_for(with_come.weights).items() <= said_by(str(out / "come_weights.safetensors")).items()
    assert "made for other weights" not in caplog.text, "the comparison with the predictor before is on purpose"
    _, about = read_checkpoint(str(out / "weights.safetensors"))
    assert (
        about["made_by"] == "come_ros adapt" and about["start"] == "small.safetensors" and about["source"] == "seq-01"
    )
    load_model("vggt", str(out / "weights.safetensors"))
    card = (out / "card.md").read_text()
    assert result["commit"] == about["commit"] and result["commit"] in card
    assert verdict_line(result["verdict"]) in card and "Licence" in card and "small.safetensors" in card
    assert f"--weights {out / 'weights.safetensors'}" in said.err or "keep the weights before" in said.err
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert cli.main(words(recording, weights, out)) == 1 and "--overwrite" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.slow
def test_a_run_that_was_stopped_is_resumed_to_the_same_result(
    recording: Path,
    weights: Path,
    true_keyframes: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a signal, and after a crash, which leaves the last checkpoint."""
    monkeypatch.setattr(adapt, "SAVE_S", 0.0)
    monkeypatch.setattr(adapt, "_scores", lambda *_: {"windows": None, "agreement": None, "whole": None})
    gradients, stop = Adaptation.gradients, [0, 0]

    def stopping(run: Adaptation) -> float:
        if run.step == 1 and stop[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        if run.step == 2 and stop[1]:
            raise RuntimeError("the power is gone")
        return gradients(run)

    monkeypatch.setattr(Adaptation, "gradients", stopping)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert cli.main([*words(recording, weights, whole), "--steps", "3"]) == 0
    asked = [*words(recording, weights, out), "--steps", "3"]
    stop[:] = 1, 0
    assert cli.main(asked) == 128 + signal.SIGTERM
    assert "step 1 is in" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {"state.pt", "lessons.pt"}
    assert cli.main([*asked, "--resume", "--steps", "4"]) == 1
    assert "of a run with --steps 3, not 4" in capsys.readouterr().err
    true_keyframes.clear()
    stop[:] = 0, 1
    with pytest.raises(RuntimeError, match="the power is gone"):
        cli.main([*asked, "--resume"])
    stop[:] = 0, 0
    assert cli.main([*asked, "--resume"]) == 0
    assert not true_keyframes, "what teaches is not reconstructed again"
    assert {path.name for path in out.iterdir()} == RESULTS
    first, second = (json.loads((folder / "log.json").read_text()) for folder in (whole, out))
    assert [e["step"] for e in second] == [e["step"] for e in first] and len(first) > 1
    assert [e["validation"] for e in second] == pytest.approx([e["validation"] for e in first], rel=1e-4)
    assert cli.main([*asked, "--resume"]) == 1
    assert "is complete: nothing is left to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--held", "0.95"], "--held is 0.95, but must be 0.1 to 0.9"),
        (["--minutes", "0"], "--minutes is 0, but must be more than 0"),
        (["--steps", "0"], "--steps is 0, but must be 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(
    more: list[str], told: str, recording: Path, weights: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    assert cli.main([*words(recording, weights, out), *more]) == 1
    assert told in capsys.readouterr().err and not out.exists()


@pytest.mark.slow
def test_what_the_bundle_does_not_vouch_for_teaches_nothing(
    recording: Path, weights: Path, tmp_path: Path, capsys: Any
) -> None:
    """Images of noise, without one track."""
    assert cli.main(words(recording, weights, tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert "the bundle vouches for 0 keyframes to learn from" in said and "more texture" in said


def test_a_recording_is_split_by_time_and_too_short_a_one_is_refused(
    recording: Path, tmp_path: Path, world: Truth
) -> None:
    split = split_by_time(Source(str(recording), Config()), 0.5)
    assert (
        split.taught == 15
        and len(split.held_stamps) == 15
        and split.held.part == split.last == Part(start_s=split.first.duration_s)
    )
    stamps = []
    for part in (split.first, split.last):
        with Source(str(recording), Config(), part=part).open() as sequence:
            stamps.append([frame.stamp_ns for frame in sequence.iter_frames()])
    assert len(stamps[0]) == 15 and tuple(stamps[1]) == split.held_stamps and max(stamps[0]) < min(stamps[1])
    short = write_folder(tmp_path / "seq-02", dataclasses.replace(world, images=world.images[:9]))
    with pytest.raises(DatasetError, match="has 9 images, but 16 or more are needed"):
        split_by_time(Source(str(short), Config()), 0.5)


def scores(after: float, direction: float = 10.0, truth: bool = True) -> dict[str, Any]:
    """Of one recording: errors before are 10."""
    one = {"abs_rel": 10.0, "rotation_deg": 10.0, "direction_deg": 10.0, "delta": 0.5, "windows": 3}
    windows = {
        "before": one, "after": {**one, "abs_rel": after, "rotation_deg": after, "direction_deg": direction},
        "trivial": {"constant abs_rel": 12.0, "mean map abs_rel": 11.0, "line x deg": 90.0},
    }  # fmt: skip
    same = {"before": one, "after": one, "trivial": {}}
    return {"windows": windows if truth else None, "agreement": same if truth else windows, "whole": None}


def test_the_verdict_is_of_the_truth_where_there_is_any() -> None:
    for truth in (True, False):
        better, worse = (verdict({"a": scores(x, truth=truth)}) for x in (8.0, 11.5))
        assert (
            better["level"] == "better"
            and better["change"] == pytest.approx(0.8 ** (2 / 3) - 1, abs=1e-4)
            and not better["worse"]
        )
        assert worse["level"] == "worse" and len(worse["worse"]) == 2 and "rotation, deg +15%" in verdict_line(worse)
    assert verdict({"a": scores(10.0)})["level"] == "alike" and "no better than" in verdict_line(
        verdict({"a": scores(10.0)})
    )
    mixed = verdict({"a": scores(5.0, direction=10 * (1 + 2 * HARM))})
    assert mixed["level"] == "mixed" and mixed["worse"] == ["a, windows of 4, truth: direction of motion, deg +20%"]
    nothing = verdict({"a": {"windows": None, "agreement": None, "whole": None}})
    assert nothing["level"] == "unknown" and "neither truth nor" in verdict_line(nothing)


def test_only_better_weights_are_recommended() -> None:
    assert of_adapted("w", verdict({"a": scores(8.0)}))[0] == "next: come_ros bag RECORDING -o OUT --weights w"
    mixed = verdict({"a": scores(5.0, direction=10 * (1 + 2 * HARM))})
    assert of_adapted("w", mixed)[0].startswith("next: compare both on a recording that it was not taught")
    assert "on average better than" in verdict_line(mixed)
    for after in (10.0, 12.0):
        assert "keep the weights before" in " ".join(of_adapted("w", verdict({"a": scores(after)})))


def test_the_table_has_the_best_trivial_baseline_and_leaves_out_what_is_unknown() -> None:
    rows = {row.title: row for row in rows_of(scores(8.0))}
    assert rows["windows of 4, truth: depth AbsRel"].trivial == 11.0
    assert math.isnan(rows["windows of 4, truth: rotation, deg"].trivial)
    assert not any("focal" in title for title in rows) and not any(
        row.decides for title, row in rows.items() if "bundle" in title
    )
    assert "| a, windows of 4, truth: depth AbsRel | 10.000 | 8.000 | 11.000 |" in table({"a": scores(8.0)})
