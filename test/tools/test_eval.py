"""`come_ros eval`: windows with their truth, figures next to trivial baselines, the same again, planted faults are found."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import Truth, trajectory, truth_of
from models import bundled_size, kept_by_come

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install '.[tools]'")

from come_ros.backbones.checkpoint import bundled_weights
from come_ros.camera.preprocess import PlainSizes
from come_ros.config import Config
from come_ros.datasets.bag_writer import BagWriter
from come_ros.errors import Cancelled, ConfigError, DatasetError
from come_ros.evaluation.window import MOTIONS, WindowTruth
from come_ros.files import write_tum
from come_ros.tools import cli
from come_ros.tools import eval as tool
from come_ros.tools.eval.frontier import against_nulls, at_the_same_time, frontier_variants, recoveries, winners
from come_ros.tools.eval.measure import Scores, measure, sequences, summary, thin_recovery
from come_ros.tools.eval.report import markdown
from come_ros.tools.eval.sources import Cut, Source, sources_of
from come_ros.tools.eval.trajectories import trajectories
from come_ros.tools.eval.variants import (
    DENSE,
    WITHOUT_WINDOW,
    SmallerImages,
    Variant,
    accelerated,
    smaller,
    without_window,
)
from come_ros.tools.eval.verdict import against_baselines, verdict
from come_ros.types import Prediction

COUNT = 12
SIDE, PATCH = 56, 14


@pytest.fixture(scope="module")
def world() -> Truth:
    return truth_of(trajectory("curve", COUNT), height=84, width=112, focal=102.4)


def write_folder(path: Path, world: Truth) -> Path:
    """In the layout of 7-Scenes, but for its camera."""
    path.mkdir()
    for i in range(len(world.images)):
        cv2.imwrite(str(path / f"frame-{i:06d}.color.png"), world.images[i][..., ::-1])
        cv2.imwrite(str(path / f"frame-{i:06d}.depth.png"), np.rint(1000 * world.depth[i]).astype(np.uint16))
        np.savetxt(path / f"frame-{i:06d}.pose.txt", world.world_from_camera[i])
    return path


class Bar:
    """Counts, as a progress bar would show."""

    n = 0

    def update(self, count: int = 1) -> None:
        self.n += count


class Says:
    """A backbone that is told what to say of each window: a function of its truth, found by its images."""

    patch_size, native_side = PATCH, SIDE

    def __init__(self, windows: list[WindowTruth], what: Any) -> None:
        self.windows, self.what = windows, what

    def predict(self, images: np.ndarray, stop: Any = None) -> Prediction:
        (truth,) = [w for w in self.windows if np.array_equal(w.images, images)]
        exact = Prediction(
            images, truth.depth / 3, np.ones_like(truth.depth), truth.world_from_camera.copy(),
            np.tile(truth.intrinsics, (len(images), 1, 1)),
        )  # fmt: skip
        exact.window_from_camera[:, :3, 3] /= 3
        return self.what(exact)


def never() -> bool:
    return False


def test_windows_of_a_recording_are_evenly_spread_and_never_leave_it() -> None:
    assert Cut(size=4).starts(11) == [0, 4]
    assert Cut(size=4, step=2).starts(11) == [0, 2, 4, 6]
    assert Cut(size=3, stride=4).starts(11) == [0] and list(Cut(size=3, stride=4).indices(1)) == [1, 5, 9]
    assert Cut(size=4).starts(3) == []
    many = Cut(size=2, step=1, most=5).starts(1000)
    assert many[0] == 0 and many[-1] == 998 and len(many) == 5 and np.ptp(np.diff(many)) <= 1
    for wrong in ({"size": 0}, {"stride": 0}, {"step": -1}, {"most": 0}):
        with pytest.raises(ConfigError, match="must lie in"):
            Cut(**wrong)


def test_windows_of_a_recording_have_truth_in_the_models_pixels(tmp_path: Path, world: Truth) -> None:
    folder = write_folder(tmp_path / "seq-01", world)
    (folder / "frame-000004.pose.txt").unlink()
    (folder / "frame-000009.depth.png").unlink()
    windows = list(Source(str(folder), Config()).windows(Cut(size=3), PlainSizes(PATCH, SIDE)))
    assert [w.index for w in windows] == [0, 1, 2, 3] and windows[0].source == "seq-01"
    first = windows[0]
    assert first.images.shape == (3, 42, 56, 3) and first.depth.shape == (3, 42, 56)
    # half the size: the truth of a pixel is that of the source pixel nearest to its middle
    assert np.abs(first.depth[0] - world.depth[0, 1::2, 1::2]).max() < 1e-3
    np.testing.assert_allclose(first.world_from_camera, world.world_from_camera[:3])
    assert first.intrinsics[0, 0] == pytest.approx(585 * 112 / 640 / 2)
    assert windows[1].world_from_camera is None and windows[1].depth is not None
    assert np.isnan(windows[3].depth[0]).all() and np.isfinite(windows[3].depth[1:]).all()


def test_bags_and_files_with_the_true_path(tmp_path: Path, world: Truth) -> None:
    path = tmp_path / "bag"
    with BagWriter(path) as bag:
        for i, frame in enumerate(world.frames(intrinsics=True)):
            bag.write(frame, world.depth[i], None)
    (window,) = Source(str(path), Config()).windows(Cut(size=COUNT), PlainSizes(PATCH, SIDE))
    assert window.world_from_camera is None and window.depth is not None
    write_tum(tmp_path / "path.tum", dict(zip(world.stamps_ns.tolist(), world.world_from_camera, strict=True)))
    (window,) = Source(str(path), Config(), gt=str(tmp_path / "path.tum")).windows(
        Cut(size=COUNT), PlainSizes(PATCH, SIDE)
    )
    np.testing.assert_allclose(window.world_from_camera, world.world_from_camera, atol=1e-6)


def test_recordings_that_cannot_be_scored_are_named(tmp_path: Path, world: Truth) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(5):
        cv2.imwrite(str(images / f"{i}.png"), world.images[i])
    with pytest.raises(DatasetError, match="neither depth nor camera poses"):
        list(Source(str(images), Config()).windows(Cut(), PlainSizes(PATCH, SIDE)))
    with pytest.raises(DatasetError, match="has 5 images, but a window takes 8"):
        list(Source(str(images), Config()).windows(Cut(size=8), PlainSizes(PATCH, SIDE)))
    with pytest.raises(ConfigError, match="do not apply to rooms"):
        list(Source("rooms", Config()).windows(Cut(stride=2), PlainSizes(PATCH, SIDE)))


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory, world: Truth) -> list[WindowTruth]:
    folder = write_folder(tmp_path_factory.mktemp("eval") / "seq-01", world)
    return list(Source(str(folder), Config()).windows(Cut(size=4), PlainSizes(PATCH, SIDE)))


def scored(windows: list[WindowTruth], *said: Any) -> Scores:
    variants = [
        Variant(DENSE if i == 0 else f"other {i}", DENSE, Says(windows, what), Config())
        for i, what in enumerate((lambda p: p, *said))
    ]
    return measure(windows, variants, len(windows), Bar(), never)


def test_what_is_planted_is_found_in_the_summary(windows: list[WindowTruth]) -> None:
    def deeper(p: Prediction) -> Prediction:
        depth = p.depth.copy()
        depth[2:] *= 1.05
        return dataclasses.replace(p, depth=depth)

    def turned(p: Prediction) -> Prediction:
        poses = p.window_from_camera.copy()
        c, s = np.cos(np.radians(2)), np.sin(np.radians(2))
        poses[1:, :3, :3] = poses[1:, :3, :3] @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        return dataclasses.replace(p, window_from_camera=poses)

    def longer(p: Prediction) -> Prediction:
        k = p.intrinsics.copy()
        k[:, :2, :2] *= 1.2
        return dataclasses.replace(p, intrinsics=k)

    scores = scored(windows, deeper, turned, longer)
    out = summary(scores)
    exact, *planted = (out[name] for name in (DENSE, "other 1", "other 2", "other 3"))
    for metric, expected in {
        "abs_rel": 0,
        "delta": 1,
        "rotation_deg": 0,
        "focal_error": 0,
        "chamfer": 0,
        "ate": 0,
    }.items():
        assert exact[metric]["value"] == pytest.approx(expected, abs=1e-4)
    # half of the pixels are 5 % too far, and the median ratio lies between the two halves
    found = planted[0]["abs_rel"]
    assert 0.02 < found["value"] < 0.03 and found["vs_dense"]["low"] > 0.015
    assert planted[0]["rotation_deg"]["value"] < 1e-3
    assert planted[1]["rotation_deg"]["value"] == pytest.approx(2, abs=1e-3)
    assert planted[1]["rotation_deg"]["vs_dense"]["low"] == pytest.approx(2, abs=1e-3)
    assert planted[1]["abs_rel"]["value"] < 1e-6 and planted[1]["auc5"]["value"] < 0.9
    assert planted[2]["focal_error"]["value"] == pytest.approx(0.2) and planted[2]["chamfer"]["vs_dense"]["low"] > 1e-3
    # the same scale in all windows: one for all is as good
    whole = sequences(scores)["seq-01"]
    assert whole[DENSE]["abs_rel"] < 1e-4 and 0.02 < whole["other 1"]["abs_rel"] < 0.03
    for null in ("constant depth", "mean depth map"):
        assert out[null]["abs_rel"]["vs_dense"]["low"] > 0.01


def test_windows_in_scales_of_their_own_are_told_by_the_whole(windows: list[WindowTruth]) -> None:
    factors = iter([1.0, 2.0, 0.5])

    def wavering(p: Prediction) -> Prediction:
        return dataclasses.replace(p, depth=p.depth * np.float32(next(factors)))

    scores = scored(windows, wavering)
    assert summary(scores)["other 1"]["abs_rel"]["value"] < 1e-6
    assert sequences(scores)["seq-01"]["other 1"]["abs_rel"] > 0.2


def made_up(kept: dict[str, float], rows: dict[str, list[float]]) -> tuple[Scores, list[Variant]]:
    """Scores with an AbsRel for each window of each variant."""
    scores = Scores(rows={n: [{"abs_rel": v, "kept_tokens": kept[n]} for v in values] for n, values in rows.items()})
    scores.windows = [("rooms", i) for i in range(len(next(iter(rows.values()))))]
    trivial = ("random", "resolution")
    return scores, [
        Variant(
            n, " ".join(w for w in n.split() if not w.startswith("ratio=")), None, Config(), n.split()[0] in trivial
        )
        for n in rows
    ]


def test_accelerators_are_held_against_trivial_baselines_at_the_same_cost() -> None:
    kept = {
        DENSE: 1.0,
        "come ratio=0.5 group=2x2": 0.6,
        "random ratio=0.5 group=2x2": 0.6,
        "resolution a": 0.4,
        "tome ratio=0.1": 0.3,
    }
    rows = {DENSE: [1, 1.2], "come ratio=0.5 group=2x2": [2, 2.2], "random ratio=0.5 group=2x2": [2.5, 2.6],
            "resolution a": [4, 4.6], "tome ratio=0.1": [9, 9]}  # fmt: skip
    scores, variants = made_up(kept, rows)
    variants = [
        dataclasses.replace(v, family=v.family.split()[0]) if v.family.startswith("resolution") else v for v in variants
    ]
    found = against_nulls(scores, variants)
    assert found["come ratio=0.5 group=2x2"]["random"]["value"] == pytest.approx(((2 - 2.5) + (2.2 - 2.6)) / 2)
    # a third of the way from 0.4 to 1: two thirds of the smaller images, one of the dense
    null = [4 * 2 / 3 + 1 / 3, 4.6 * 2 / 3 + 1.2 / 3]
    assert found["come ratio=0.5 group=2x2"]["resolution"]["value"] == pytest.approx((2 - null[0] + 2.2 - null[1]) / 2)
    assert "tome ratio=0.1" not in found and "random ratio=0.5 group=2x2" not in found
    times = {
        name: {"trunk_ratio": {"value": ratio, "low": ratio, "high": ratio}}
        for name, ratio in zip(rows, (1.0, 0.7, 0.7, 0.5, 1.3), strict=True)
    }
    later = at_the_same_time(scores, variants, times)
    assert later["come ratio=0.5 group=2x2"]["value"] == pytest.approx(
        (2 - (0.6 * 4 + 0.4) + 2.2 - (0.6 * 4.6 + 0.4 * 1.2)) / 2
    )
    assert "tome ratio=0.1" not in later  # slower than the dense model
    by_chance = at_the_same_time(scores, variants, times, kind="random")
    assert by_chance["come ratio=0.5 group=2x2"]["value"] == pytest.approx(-0.45) and "tome ratio=0.1" not in by_chance


def test_of_several_sizes_of_random_groups_the_best_counts() -> None:
    names = [DENSE, "come ratio=0.5", "random ratio=0.5 group=2x2", "random ratio=0.5 group=3x3"]
    errors, shares = (0.1, 0.14, 0.2, 0.15), (1.0, 0.5, 0.5, 0.5)
    scores, variants = made_up(dict.fromkeys(names, 1.0), {n: [e] * 16 for n, e in zip(names, errors, strict=True)})
    times = {n: {"total_ratio": dict.fromkeys(("value", "low", "high"), s)} for n, s in zip(names, shares, strict=True)}
    found = at_the_same_time(scores, variants, times, kind="random", clock="total_ratio")
    assert found["come ratio=0.5"]["value"] == pytest.approx(-0.01) and found["come ratio=0.5"]["sure"]


def test_what_the_edge_vote_wins_back_counts_where_the_dense_model_saw_something() -> None:
    recalls = {
        DENSE: [0.8, 0.6, 0.1],
        "come ratio=0.5": [0.4, 0.2, 0.9],
        "come ratio=0.5 edge_weight=1": [0.7, 0.5, 0.0],
    }
    scores = Scores(rows={name: [{"thin_recall": r} for r in values] for name, values in recalls.items()})
    found = thin_recovery(scores, "come ratio=0.5", "come ratio=0.5 edge_weight=1")
    assert found["windows"] == 2 and found["dense"] == pytest.approx(0.7) and found["recovered"] == pytest.approx(0.75)
    assert recoveries(scores, [Variant(n, n, None, Config()) for n in recalls]).keys() == {
        "come ratio=0.5 edge_weight=1"
    }
    blind = Scores(rows={name: [{"thin_recall": 0.1}] for name in recalls})
    assert thin_recovery(blind, "come ratio=0.5", "come ratio=0.5 edge_weight=1") is None


def test_smaller_images_come_back_in_the_pixels_of_the_large_ones() -> None:
    class Sees:
        """Depth that grows to the right by a tenth of the image's width, a camera of half that width."""

        patch_size = PATCH

        def dense(self) -> Any:
            return self

        def predict(self, images: np.ndarray, stop: Any = None) -> Prediction:
            s, h, w = images.shape[:3]
            depth = np.broadcast_to(1 + (np.arange(w, dtype=np.float32) + 0.5) / w, (s, h, w)).copy()
            k = np.array([[w / 2, 0, w / 2 - 0.5], [0, h / 2, h / 2 - 0.5], [0, 0, 1]])
            return Prediction(images, depth, depth, np.tile(np.eye(4), (s, 1, 1)), np.tile(k, (s, 1, 1)))

    images = np.zeros((2, 112, 140, 3), np.uint8)  # 10 x 8 patches
    p = SmallerImages(Sees(), 4, 5).predict(images)
    assert p.kept_ratio == 0.25 and p.images is images and p.depth.shape == (2, 112, 140)
    u = 1 + (np.arange(140) + 0.5) / 140
    assert np.abs(p.depth - u)[:, :, 2:-2].max() < 1e-5
    assert p.intrinsics[0] == pytest.approx(np.array([[70, 0, 69.5], [0, 56, 55.5], [0, 0, 1]]))
    names = [v.name for v in smaller(Sees(), Config(), 112, 140)]
    assert names == ["resolution 126x98", "resolution 112x84", "resolution 84x70", "resolution 70x56"]


def test_a_wrong_accelerator_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"accelerator\.ratio is 2"):
        accelerated(None, Config(), "come:ratio=2.0")
    with pytest.raises(ConfigError, match=r"accelerator\.name is 'comet'"):
        accelerated(None, Config(), "comet")


def test_recordings_of_one_name_are_told_apart(tmp_path: Path) -> None:
    names = ["rooms", str(tmp_path / "chess/seq-01"), str(tmp_path / "fire/seq-01"), str(tmp_path / "desk"), "rooms"]
    assert [s.label for s in sources_of(names, Config(), None, None)] == ["rooms", names[1], names[2], "desk"]


@pytest.mark.slow
def test_poses_alone_can_be_scored(tmp_path: Path, world: Truth) -> None:
    frames = []
    for i, (image, pose) in enumerate(zip(world.images[:2], world.world_from_camera[:2], strict=True)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        frames.append({"file_path": f"{i}.png", "transform_matrix": (pose @ np.diag([1, -1, -1, 1])).tolist()})
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 102.4, "w": 112, "h": 84, "frames": frames}))
    assert run_eval(str(tmp_path), "-o", str(tmp_path / "out"), "--set", "backbone=fake", "--size", "2") == 0
    (about,) = read(tmp_path / "out")["sources"].values()
    rows = about["summary"]
    assert "abs_rel" not in rows[DENSE] and rows[DENSE]["rotation_deg"]["value"] > 0 and not about["whole"]
    assert "no verdict: 1 windows" in about["against_baselines"][0]


def run_eval(*words: str) -> int:
    return cli.main(["eval", *words])


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
def test_the_bundled_model_on_rooms_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "TIMED_WINDOWS", 1)  # times differ from run to run
    monkeypatch.setattr(tool, "TIMED_REPEATS", 2)
    words = ("rooms", "thin", "--windows", "2", "--size", "3")
    assert run_eval(*words, "-o", str(tmp_path / "a")) == 0
    said = capsys.readouterr().out
    result = read(tmp_path / "a")
    alone = ["single images", "the same image n times", "no cross-frame attention"]
    assert result["windows"] == {"rooms": 2, "thin": 2} and result["variants"] == [DENSE, "come", *alone]
    assert result["given"] == "images" and result["baselines"] == alone and result["same"] == {}
    rows = result["sources"]["thin"]["summary"]
    assert set(rows) == {DENSE, "come", *alone, "constant depth", "mean depth map", *MOTIONS}
    assert result["sources"]["rooms"]["summary"]["come"] != rows["come"], "sources are never pooled"
    assert all(np.isfinite(rows[b]["step_error"]["value"]) for b in MOTIONS)
    for metric in (
        "abs_rel",
        "frame_abs_rel",
        "length_ratio",
        "step_error",
        "rmse",
        "edge_abs_rel",
        "auc30",
        "ate",
        "chamfer",
        "ause",
        "spearman",
        "thin_f1",
        "focal_error",
    ):
        value = rows[DENSE][metric]
        assert value["low"] <= value["value"] <= value["high"], metric
    assert rows[DENSE]["abs_rel"]["value"] < rows["constant depth"]["abs_rel"]["value"]
    assert rows["come"]["kept_tokens"]["value"] < 1 and "vs_dense" in rows["come"]["abs_rel"]
    sentence = result["sources"]["rooms"]["sentences"][0]
    kept = f"{kept_by_come(*bundled_size(4, 3), 3, 0.5):.2f}"
    assert re.match(
        rf"come: \d\.\d\d of the time .*, {kept} of the tokens, AbsRel [+-]0\.\d+ \(not distinguishable", sentence
    )
    assert said.index(sentence) < said.index("| depth AbsRel |") < said.index("no verdict: 2 windows are worth 2")
    assert "**+" not in said and "**-" not in said, "nothing is sure of two windows"
    assert "| depth AbsRel |" in said and (tmp_path / "a" / "metrics.md").read_text() in said
    for name in ("plots.png", "windows.png"):
        assert cv2.imread(str(tmp_path / "a" / name)).std() > 10
    for draw in ("draw_plots", "draw_windows"):  # what is compared are the figures
        monkeypatch.setattr(tool, draw, lambda *_: None)
    assert run_eval(*words, "-o", str(tmp_path / "b")) == 0
    again = read(tmp_path / "b")
    for one in (result, again):
        del one["timings"]
        for about in one["sources"].values():
            about["sentences"] = [re.sub(rf" \d.*?(, {kept})", r"\1", text) for text in about["sentences"]]
    assert result == again
    assert run_eval(*words, "-o", str(tmp_path / "b")) == 1 and "already holds results" in capsys.readouterr().err


@pytest.mark.slow
def test_a_recording_also_gets_the_path_of_the_whole(tmp_path: Path, world: Truth) -> None:
    folder = write_folder(tmp_path / "seq-01", world)
    code = run_eval(str(folder), "-o", str(tmp_path / "out"), "--set", "backbone=fake", "--set", "keyframe.mode=every")
    result = read(tmp_path / "out")
    assert code == 0 and result["windows"] == {"seq-01": 3} and result["variants"][0] == DENSE
    path = result["trajectories"]["seq-01"][DENSE]
    assert path["trajectory"]["poses"] == COUNT and path["trajectory"]["ate_rmse_m"]["come_ros"] > 0
    assert path["rotation"]["pairs"] == COUNT - 1 and set(result["trajectories"]["seq-01"]) == {DENSE}
    # the stand-in says the same of every recording: what it says of motion must not look like a result
    own, baselines = path["trajectory"]["ate_rmse_m"].pop("come_ros"), path["trajectory"]["ate_rmse_m"]
    assert set(baselines) == {"not moving", "straight line", "random walk", "best 5 % of random walks"}
    assert baselines["straight line"] < baselines["not moving"] >= own
    assert path["trajectory"]["short"] == pytest.approx(
        path["trajectory"]["scale"] / path["trajectory"]["depth_scale"], rel=1e-3
    )
    assert path["trajectory"]["length_ratio"] > 0 and path["trajectory"]["ate_depth_scale_rmse_m"] > 0
    path["trajectory"]["ate_rmse_m"]["come_ros"] = own
    assert "| dense | 12 |" in markdown(result) and "(windows of 8, overlap 4)" in markdown(result)


@pytest.mark.slow
def test_the_path_of_a_recording_is_that_of_the_variant(
    tmp_path: Path, world: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of what the configuration or its defaults say of an accelerator."""
    from come_ros.backbones.torch_backbone import TorchBackbone

    folder, ran, predict = write_folder(tmp_path / "seq-01", world), [], TorchBackbone.predict

    def noted(self: Any, images: np.ndarray, *args: Any, **more: Any) -> Prediction:
        ran.append(
            (self.accelerator.name, *(getattr(self.accelerator, k, None) for k in ("ratio", "group", "edge_weight")))
        )
        return predict(self, images, *args, **more)

    monkeypatch.setattr(TorchBackbone, "predict", noted)
    source = Source(str(folder), Config.from_flat({"keyframe.mode": "every", "device": "cpu", "input.max_side": 112}))
    backbone = tool._backbone(source.config)
    wanted = ["come:ratio=0.25,group=2x2,edge_weight=3", "come:ratio=0.75", "random:edge_weight=3"]
    variants, _ = tool._variants(backbone, source.config, wanted)
    found = trajectories(source, [v for v in variants if v.name not in WITHOUT_WINDOW], never)
    assert list(dict.fromkeys(ran)) == [
        ("none", None, None, None),
        ("come", 0.25, (2, 2), 3.0),
        ("come", 0.75, (3, 3), 0.0),
        ("random", 0.5, (3, 3), 0.0),  # at random, whatever was asked for
    ]
    errors = [row["trajectory"]["ate_rmse_m"]["come_ros"] for row in found.values()]
    assert len(set(errors)) == len(errors)


def test_the_best_of_each_bracket_is_held_against_its_rivals_and_baselines() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.1, 0.3, 24)
    scores = Scores()
    errors = {
        DENSE: base, "come ratio=0.2": base + 0.01, "come ratio=0.6": base + 0.05, "tome ratio=0.6": base + 0.05 + rng.normal(0, 0.01, 24),
        "random ratio=0.6": base + 0.03, "resolution 42x28": base + 0.2,
    }  # fmt: skip
    scores.rows = {name: [{"abs_rel": float(e)} for e in values] for name, values in errors.items()}
    scores.windows = [("rooms", i) for i in range(24)]
    trivial = ("random", "resolution")
    variants = [Variant(name, name.split()[0], None, Config(), name.split()[0] in trivial) for name in errors]
    costs = dict(zip(errors, (1.0, 0.85, 0.55, 0.56, 0.55, 0.85), strict=True))
    first, second = winners(scores, variants, costs, "abs_rel")
    assert (first["limit"], first["best"], first["verdict"]) == (0.9, "come ratio=0.2", "accelerator")
    assert first["null"] == "random ratio=0.6" and first["share"] == 1 and first["level"] == []
    assert first["vs_dense"]["value"] == pytest.approx(0.01) and first["vs_null"]["value"] == pytest.approx(-0.02)
    # within 0.7 and 0.6 there are just the same, below nobody is left
    assert (second["limit"], second["down_to"], second["verdict"], second["rivals"]) == (0.8, 0.6, "baseline", 2)
    assert {second["best"], *second["level"]} == {"come ratio=0.6", "tome ratio=0.6"} and 0.1 < second["share"] < 1


@pytest.mark.slow
def test_the_frontier_has_every_accelerator_and_its_trivial_baselines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from come_ros.accelerators import registered

    for kind in registered().values():  # two settings of each will do
        monkeypatch.setattr(kind, "frontier", kind.frontier[:2])
    monkeypatch.setattr(tool, "TIMED_WINDOWS", 1)
    monkeypatch.setattr(tool, "TIMED_REPEATS", 2)
    assert run_eval("--frontier", "--windows", "2", "--size", "2", "-o", str(tmp_path)) == 0
    result = read(tmp_path)
    tried = {name.split()[0] for name in (*result["variants"], *result["same"])}
    missing = set(registered()) - {"none"} - tried - set(result["left_out"])
    assert not missing and DENSE in result["variants"]
    assert any(name.startswith("resolution") for name in result["variants"])
    times, about = result["timings"]["of"], result["sources"]["rooms"]
    assert set(times) == set(result["variants"]) - {"single images", "the same image n times"}
    assert times[DENSE]["trunk_ratio"]["value"] == 1
    for row in times.values():
        assert row["trunk_ratio"]["low"] <= row["trunk_ratio"]["value"] <= row["trunk_ratio"]["high"]
    assert about["against_nulls"]["abs_rel"]["come ratio=0.25 group=2x2"]["random"]["group"] in ("2x2", "3x3")
    for row in about["winners"]["abs_rel"]:
        assert not row["best"].startswith(("random", "resolution", DENSE)) and row["cost"] <= row["limit"]
        assert row["verdict"] == "undecided", "two windows decide nothing"
    assert about["winners"]["chamfer"], "some accelerator keeps less than 0.9 of the tokens"
    assert ("winners" in result["timings"]) == (not result["timings"]["busy"])
    table = (tmp_path / "metrics.md").read_text()
    assert all(f"| {name} |" in table for name in result["variants"])
    assert "There is no ranking: 2 independent windows" in table
    assert cv2.imread(str(tmp_path / "plots.png")).std() > 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["--windows", "0"], "--windows is 0"),
        (["--size", "65"], "--size is 65"),
        (["--set", "window.siz=3"], "unknown parameter"),
        (["--seed", "-1"], "--seed is -1"),
        (["--frontier", "--set", "backbone=fake"], "needs a model with tokens"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_eval(*words, "-o", str(tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.glob("out/*"))


# What an audit found, one by one


def test_random_groups_of_each_size_are_a_curve_and_the_best_counts() -> None:
    """They were one zigzag: next to a 3x3 point, which is worse, an accelerator had an easy baseline."""
    kept = {DENSE: 1.0, "random ratio=0.5 group=2x2": 0.62, "random ratio=0.75 group=2x2": 0.44, "random ratio=0.5 group=3x3": 0.56,
            "pace ratio=0.4": 0.6}  # fmt: skip
    rows = {DENSE: [1.0] * 16, "random ratio=0.5 group=2x2": [1.1] * 16, "random ratio=0.75 group=2x2": [1.2] * 16,
            "random ratio=0.5 group=3x3": [3.0] * 16, "pace ratio=0.4": [1.5] * 16}  # fmt: skip
    scores, variants = made_up(kept, rows)
    found = against_nulls(scores, variants)["pace ratio=0.4"]["random"]
    assert found["group"] == "group=2x2" and found["sure"]
    assert found["value"] == pytest.approx(1.5 - (1.1 + 0.1 * (0.62 - 0.6) / (0.62 - 0.44)))


def test_two_settings_never_share_a_name() -> None:
    from types import SimpleNamespace

    backbone = SimpleNamespace(
        model=tool._backbone(Config()).model,
        device="cpu",
        description={"weights": bundled_weights()},
        accelerated=lambda a: a,
    )
    edges = Config().replace(**{"accelerator.edge_weight": 3.0})
    names = [
        accelerated(backbone, config, text).name
        for config, text in (
            (Config(), "come"), (edges, "come"), (edges, "come:edge_weight=0"), (Config(), "come:edge_weight=0,ratio=0.5"),
            (Config().replace(**{"accelerator.group": "2x2"}), "come"), (Config(), "come:rule=v2"),
        )
    ]  # fmt: skip
    assert names == ["come", "come edge_weight=3", "come", "come ratio=0.5", "come group=2x2", "come rule=v2"]


def test_what_changes_nothing_is_run_once(windows: list[WindowTruth]) -> None:
    runs = []

    def counted(p: Prediction) -> Prediction:
        runs.append(p)
        return dataclasses.replace(p, depth=p.depth * np.float32(1.5))

    scores = scored(windows, counted, counted, lambda p: dataclasses.replace(p, depth=p.depth * np.float32(1.25)))
    assert scores.same == {"other 2": "other 1"} and "other 2" not in scores.rows and "other 3" in scores.rows
    assert len(runs) == len(windows) + 2, "both in the first two windows, one in those that follow"


def test_windows_that_were_complete_are_kept_when_it_is_stopped(windows: list[WindowTruth]) -> None:
    def scored(stops_after: int) -> Scores:
        """stops_after: predictions; each window has two."""
        made = []

        def noted(p: Prediction) -> Prediction:
            made.append(1)
            return dataclasses.replace(p, depth=(1 + len(made) % 2) * p.depth)

        variants = [Variant(name, name, Says(windows, noted), Config()) for name in (DENSE, "other")]
        return measure(windows, variants, len(windows), Bar(), lambda: len(made) >= stops_after)

    for stops_after in (5, 6):  # in the third window, between its variants and while they are scored
        scores = scored(stops_after)
        assert scores.stopped and len(scores.windows) == 2
        assert {len(rows) for rows in scores.rows.values()} == {2}
    with pytest.raises(Cancelled):
        scored(0)


def test_neighbours_in_a_recording_count_for_less_than_rooms() -> None:
    rng = np.random.default_rng(0)
    drift = np.repeat(rng.normal(0, 1, 8), 3)  # neighbours are alike
    rooms, place = (Scores(rows={DENSE: [{"abs_rel": float(v)} for v in drift]}, windows=[(s, i) for i in range(24)])
                    for s in ("rooms", "a place"))  # fmt: skip
    assert (rooms.block, rooms.independent, place.block, place.independent) == (1, 24, 3, 8)
    widths = [found["high"] - found["low"] for found in (s.interval(DENSE, "abs_rel") for s in (rooms, place))]
    assert widths[1] > 1.2 * widths[0]
    few = Scores(rows={}, windows=[("a place", i) for i in range(17)])
    assert few.independent == 5
    assert few.difference(np.ones(17), np.zeros(17)) == {"value": 1.0, "low": 1.0, "high": 1.0, "sure": False}


def test_nobody_is_ranked_by_times_of_a_busy_machine() -> None:
    kept = {DENSE: 1.0, "come ratio=0.5": 0.6, "random ratio=0.5 group=2x2": 0.6}
    scores, variants = made_up(kept, {name: [0.1 + 0.01 * i] * 16 for i, name in enumerate(kept)})
    result = {
        "frontier": True,
        "sources": {"rooms": {"summary": summary(scores)}},
        "timings": {
            "busy": "other processes took 1.4 of 2 cores meanwhile",
            "of": {n: {"total_ratio": dict.fromkeys(("value", "low", "high"), k), "trunk_ratio": dict.fromkeys(("value", "low", "high"), k)}
                   for n, k in kept.items()},
        },
    }  # fmt: skip
    done = tool._finished(result, scores, variants, 0.0)
    assert "winners" not in done["timings"] and done["sources"]["rooms"]["winners"]["abs_rel"]
    assert "measured on a busy machine" in done["sources"]["rooms"]["sentences"][0]


def test_a_limit_of_time_lets_nobody_in_by_noise() -> None:
    kept = {DENSE: 1.0, "come ratio=0.5": 0.6}
    scores, variants = made_up(kept, {DENSE: [0.1] * 16, "come ratio=0.5": [0.2] * 16})
    assert winners(scores, variants, {DENSE: 1.0, "come ratio=0.5": 0.93}, "abs_rel") == []
    times = {DENSE: {"trunk_ratio": {"value": 1.0, "low": 1.0, "high": 1.0}},
             "come ratio=0.5": {"trunk_ratio": {"value": 0.7, "low": 0.55, "high": 0.9}},
             "resolution a": {"trunk_ratio": {"value": 0.5, "low": 0.5, "high": 0.5}}}  # fmt: skip
    rows = {DENSE: [0.1] * 16, "come ratio=0.5": [0.16] * 16, "resolution a": [0.2] * 16}
    scores, variants = made_up({**kept, "resolution a": 0.5}, rows)
    variants = [dataclasses.replace(v, family=v.family.split()[0]) for v in variants]
    (found,) = at_the_same_time(scores, variants, times).values()
    # at 0.55 of the time smaller images are 0.19, at 0.9 they are 0.12
    assert (found["low"], found["high"]) == (pytest.approx(-0.03), pytest.approx(0.04)) and not found["sure"]


@pytest.mark.parametrize(
    ("ours", "level", "text"),
    [
        (0.1, "usable", "better than all trivial baselines: depth (AbsRel)"),
        (0.3, "unusable", "not better than trivial baselines: depth"),
    ],
)
def test_the_verdict_is_one_line(ours: float, level: str, text: str) -> None:
    scores, _ = made_up({DENSE: 1.0, "constant depth": 1.0}, {DENSE: [ours] * 16, "constant depth": [0.3] * 16})
    assert verdict(scores).line.startswith(f"{level}: {text}")
    few, _ = made_up({DENSE: 1.0, "constant depth": 1.0}, {DENSE: [ours] * 4, "constant depth": [0.3] * 4})
    assert (
        verdict(few).line.startswith("doubtful: 4 independent windows are too few")
        and "--windows" in verdict(few).advice
    )


@pytest.mark.slow
def test_a_path_that_is_too_short_is_said_to_be(windows: list[WindowTruth]) -> None:
    def short(p: Prediction) -> Prediction:
        poses = p.window_from_camera.copy()
        poses[:, :3, 3] *= 0.04
        return dataclasses.replace(p, window_from_camera=poses)

    def at(poses: np.ndarray, count: int = 3) -> list[WindowTruth]:
        return [dataclasses.replace(windows[0], index=i, images=np.roll(windows[0].images, i, 2)) for i in range(count)]

    many = at(windows[0].world_from_camera, 9)
    many = [dataclasses.replace(w, source="rooms") for w in many]
    variants = [Variant(DENSE, DENSE, Says(many, short), Config())]
    scores = measure(many, variants, len(many), Bar(), never)
    row = summary(scores)[DENSE]
    assert row["length_ratio"]["value"] == pytest.approx(0.04) and row["ate"]["value"] < 1e-6, "ATE by Sim(3) hides it"
    assert row["step_error"]["value"] == pytest.approx(
        0.96 * summary(scores)["not moving"]["step_error"]["value"], rel=1e-3
    )
    assert "translations in a window: 25 times too short for the depth" in against_baselines(scores)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pi3", "mapanything"])
def test_a_model_sees_what_it_sees_in_the_node(name: str, tmp_path: Path, world: Truth) -> None:
    from models import tiny

    from come_ros.accelerators import NoAccelerator
    from come_ros.backbones.torch_backbone import TorchBackbone
    from come_ros.pipeline import ReconstructionPipeline

    frames = []
    for i, pose in enumerate(world.world_from_camera[:3]):  # wide: where the rules for sizes differ
        cv2.imwrite(str(tmp_path / f"{i}.png"), cv2.resize(world.images[i], (188, 56)))
        frames.append({"file_path": f"{i}.png", "transform_matrix": (pose @ np.diag([1, -1, -1, 1])).tolist()})
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 102.4, "w": 188, "h": 56, "frames": frames}))
    config = Config.from_flat({"window.size": 3, "keyframe.mode": "every", "window.overlap": 1})
    seen: list[Any] = []

    class Noted(TorchBackbone):
        def predict(self, images: np.ndarray, stop: Any = None, known: Any = None, step: Any = None) -> Prediction:
            seen.append((images, known))
            return super().predict(images, stop, known, step)

    backbone = Noted(name, tiny(name), NoAccelerator(), device="cpu")
    source = Source(str(tmp_path), config)
    (window,) = source.windows(Cut(size=3), backbone)
    Variant(DENSE, DENSE, backbone, config).predict(window)
    with source.open() as sequence:
        list(ReconstructionPipeline(config, backbone).run(sequence.iter_frames()))
    (ours, known), (node, its) = seen
    np.testing.assert_array_equal(ours, node)
    assert (known is None) == (its is None) == (name == "pi3")
    if known is not None:
        np.testing.assert_allclose(known.intrinsics, its.intrinsics)


def test_the_frontier_of_some_has_the_trivial_baselines_still() -> None:
    backbone = tool._backbone(Config())
    variants, left_out = frontier_variants(backbone, Config(), 126, 168, ["tome", "come:ratio=0.4,group=2x2"])
    rivals = [v.name for v in variants if not v.trivial]
    assert (
        rivals == [DENSE, "tome ratio=0.25", "tome ratio=0.5", "tome ratio=0.75", "come ratio=0.4 group=2x2"]
        and not left_out
    )
    assert {v.family.split()[0] for v in variants if v.trivial} == {"random", "resolution", "single", "the", "no"}
    with pytest.raises(ConfigError, match="there is no accelerator 'comet'"):
        frontier_variants(backbone, Config(), 126, 168, ["comet"])


def test_frames_that_see_no_other_are_as_sure_of_depth_as_alone() -> None:
    """No cross-frame attention is not the same as single images: the first frame has a token of its own."""
    backbone = tool._backbone(Config())
    images = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), np.uint8)
    window = WindowTruth("rooms", 0, images)
    alone = {v.name: v.predict(window) for v in without_window(backbone, Config())}
    single, same, apart = (alone[name] for name in WITHOUT_WINDOW)
    np.testing.assert_allclose(apart.depth[0], single.depth[0], rtol=2e-4)
    assert np.abs(apart.depth[1] / single.depth[1] - 1).max() > 1e-3
    assert np.abs(same.depth / single.depth - 1).max() > 1e-4 and (single.window_from_camera == np.eye(4)).all()
    swapped = Variant(WITHOUT_WINDOW[2], "", list(without_window(backbone, Config()))[2].backbone, Config())
    moved = swapped.predict(dataclasses.replace(window, images=images[[0, 2, 1]]))
    np.testing.assert_allclose(moved.depth[1], apart.depth[2], rtol=2e-4)
