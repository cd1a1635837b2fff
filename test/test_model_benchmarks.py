"""Programs that measure a model before it ships: what is kept of a run, and what their figures mean."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmark import kept
from benchmark.accuracy import (
    by_difficulty,
    candidate,
    frontier_sizes,
    frontier_whole,
    side_by_side,
    thin,
    training_curve,
)

from come_ros.backbones.checkpoint import bundled_weights
from come_ros.errors import DatasetError
from come_ros.evaluation.thin import ThinMargins
from come_ros.evaluation.window import WindowTruth
from come_ros.tools.eval import _backbone
from come_ros.tools.eval.variants import DENSE

BETTER, WORSE = (
    {"value": -0.1, "low": -0.2, "high": -0.05, "sure": True},
    {"value": 0.1, "low": 0.0, "high": 0.2, "sure": True},
)


# What is kept


def test_a_row_is_measured_once_and_an_interrupted_one_again(tmp_path: Path) -> None:
    store = kept.Kept(tmp_path, "x")
    assert store.get("a", lambda: {"v": 1.0}) == {"v": 1.0} and store.get("b", lambda: 2) == 2
    with open(store.path, "a", encoding="utf-8") as stream:
        stream.write('{"key": "c", "ro')
    again = kept.Kept(tmp_path, "x")
    assert again.rows == {"a": {"v": 1.0}, "b": 2} and again.commits == store.commits
    assert again.get("a", lambda: 1 / 0) == {"v": 1.0}
    assert again.get("c", lambda: 3) == 3 and kept.Kept(tmp_path, "x").rows["c"] == 3


def test_other_weights_files_or_settings_have_rows_of_their_own(tmp_path: Path) -> None:
    weights = tmp_path / "made" / "other.safetensors"
    weights.parent.mkdir()
    shutil.copyfile(bundled_weights(), weights)
    paths = [kept.Kept(tmp_path, "x", str(weights)).path, kept.Kept(tmp_path, "x", str(weights), ["4"]).path]
    (weights.parent / "come_other.safetensors").write_bytes(b"a predictor")
    paths.append(kept.Kept(tmp_path, "x", str(weights)).path)
    shutil.copyfile(weights, tmp_path / "same.safetensors")
    shutil.copyfile(weights.parent / "come_other.safetensors", tmp_path / "come_same.safetensors")
    alone = [kept.Kept(tmp_path, "x", w, networks=()).path for w in ("", str(weights))]
    assert len(set(paths)) == 3 and alone[0] == alone[1]
    assert kept.Kept(tmp_path, "x", str(tmp_path / "same.safetensors")).path == paths[2]  # whatever it is called


def test_only_what_ships_is_stamped(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "out"
    same = tmp_path / "copy.safetensors"
    shutil.copyfile(bundled_weights(), same)
    for weights in ("", str(same)):
        assert kept.publish("x", weights, out, {"v": float("nan")}, "text", results=results) == results
    assert json.loads((results / "x.json").read_text()) == {"v": None} and (results / "x.stamp.json").exists()
    same.write_bytes(b"other weights")
    assert kept.publish("x", str(same), out, None, "text", results=results) == out
    assert sorted(p.name for p in out.iterdir()) == ["x.md"]


def test_a_program_ends_with_its_result_and_where_it_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "other.safetensors"
    weights.write_bytes(b"other weights")
    args = kept.arguments("What it does.", "x").parse_args(["--weights", str(weights), "-o", str(tmp_path / "out")])
    assert kept.finish("x", args, {"v": 1}, "# X", lambda path: path.touch()) == 0
    assert sorted(p.name for p in args.out.iterdir()) == ["x.json", "x.md", "x.png"]
    assert capsys.readouterr().out == f"# X\nx.json, x.md, x.png in {args.out}\n"
    assert kept.finish("y", args, None, "# Y") == 0 and capsys.readouterr().out.endswith(f"\ny.md in {args.out}\n")
    assert kept.arguments("", "x").parse_args([]).out == Path("out/x") and not hasattr(args, "against")


def test_a_result_says_what_its_program_says() -> None:
    doc = "A title.\n\n  a command\n\nWindows of 4\nare sorted. Windows are kept."
    assert kept.described(doc, "Windows of") == "Windows of 4 are sorted. Windows are kept."
    assert kept.described(doc, "Windows of", "Windows are") == "Windows of 4 are sorted."


def test_the_best_trivial_baseline_is_the_best_that_is_known() -> None:
    scores = {"constant delta": 0.4, "mean map delta": 0.5, "constant abs_rel": 0.2, "mean map abs_rel": float("nan")}
    assert [candidate.best_trivial(scores, f) for f in ("delta", "abs_rel", "rotation_deg", "length_ratio")] == [
        0.5, 0.2, None, None,
    ]  # fmt: skip


def test_a_candidate_stands_next_to_the_bundled_model() -> None:
    def of(weights: str, against: str) -> list[str]:
        return list(kept.compared(argparse.Namespace(weights=weights, against=against)).values())

    assert of("", "") == [bundled_weights()]
    assert of("new.safetensors", "") == [bundled_weights(), "new.safetensors"]
    assert of("", "old.safetensors") == ["old.safetensors", bundled_weights()]


# Frontier


def test_a_reducer_is_compared_at_its_own_time() -> None:
    """Random groups at half of the time are 20 % worse than dense, smaller images 10 %."""
    shares = {DENSE: (1, 0, 1), "come": (0.5, 0.15, 0.6), "tome": (1.2, 0.0, 0.6), "random group=2x2": (0.5, 0.2, 0.6),
              "resolution a": (0.5, 0.1, 0.5)}  # fmt: skip
    rows = [
        {n: {"total": 10 * t, "trunk": 5 * t, "total_share": t, "trunk_share": t, "abs_rel": 0.1 * (1 + e) * (1 + i / 99),
             "kept_tokens": k, "read_keys": k, "delta": 0.5,
             "rotation_deg": 1.0, "ate": 0.1} for n, (t, e, k) in shares.items()}
        for i in range(10)
    ]  # fmt: skip
    variants = [made(name) for name in shares]
    found = frontier_sizes.compared(rows, variants)
    assert found["come"]["share"]["total"]["value"] == pytest.approx(0.5)
    assert found["come"]["vs_dense"]["value"] == pytest.approx(0.15) and found["come"]["vs_dense"]["sure"]
    assert (
        found["come"]["random"]["value"] == pytest.approx(-0.05)
        and frontier_sizes.standing(found["come"]["random"]) == "better"
    )
    assert found["come"]["random as many"]["value"] == pytest.approx(-0.05)
    assert (
        found["come"]["resolution"]["value"] == pytest.approx(0.05)
        and frontier_sizes.standing(found["come"]["resolution"]) == "worse"
    )
    assert frontier_sizes.standing(found["tome"]["random"]) == "no faster"
    cells = {"8:192": {"cell": [8, 192, 10], "image": [192, 144], "windows": 10, "variants": found}}
    text = frontier_sizes.text_of(cells, "", {"pace": "no networks"}, ["abc"])
    assert "| come | 0.50, +15.0%; better, worse | 0 of 1 |" in text and "Left out: pace" in text


def made(name: str) -> Any:
    from come_ros.config import Config
    from come_ros.tools.eval.variants import Variant

    trivial = name.startswith(("random", "resolution"))
    return Variant(name, name.split()[0] if name.startswith("resolution") else name, None, Config(), trivial)


def test_a_difference_is_better_worse_or_neither() -> None:
    assert [frontier_sizes.standing(d) for d in (BETTER, WORSE, {**WORSE, "sure": False}, {})] == [
        "better",
        "worse",
        "level",
        "no faster",
    ]


def test_what_depends_on_a_file_is_measured_again_if_it_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ("tome", "come", "pace", "come+good_token_hunting", "good_token_hunting")
    variants = {text: made(text) for text in (DENSE, *(f"{name}:ratio=0.5" for name in names))}
    _, tome, come, pace, both, keys = variants
    groups = {needs: [v.name for v in some] for needs, some in frontier_sizes.groups_of(variants).items()}
    assert groups == {
        ("layer plan",): [DENSE, tome, keys], ("come", "layer plan"): [DENSE, come, both], ("pace",): [DENSE, pace],
    }  # fmt: skip
    ran: list[str] = []
    monkeypatch.setattr(frontier_sizes, "size_of", lambda *of: (8, 8))
    monkeypatch.setattr(frontier_sizes, "room", lambda *of: None)
    monkeypatch.setattr(frontier_sizes, "run", lambda v, truth: (ran.append(v.name), {"trunk": 1.0, "total": 2.0}))
    monkeypatch.setattr(frontier_sizes, "scored", lambda prediction, truth: {"abs_rel": 0.1})
    bar = argparse.Namespace(set_postfix_str=lambda text: None, update=lambda: None)

    def measured(networks: str) -> Any:
        def store(needs: tuple[str, ...], names: list[str]) -> kept.Kept:
            return kept.Kept(tmp_path, "x", "", [*names, networks if "pace" in needs else ""], ())

        return frontier_sizes.measured(frontier_sizes.Cell(4, 112, 2), variants, store, bar)

    rows, commits = measured("first")
    assert (
        [list(row) for row in rows] == [list(variants)] * 2 and rows[0][pace]["total_share"] == 1 and len(commits) == 1
    )
    assert len(ran) == 2 * (3 + 3 + 2)
    assert measured("first")[0] == rows and len(ran) == 16
    assert measured("others")[0] == rows and ran[16:].count(pace) == 2 and len(ran) == 20


def test_cells_can_be_run_one_by_one() -> None:
    cells = frontier_sizes.CELLS
    assert frontier_sizes.chosen(cells, [], 0) == list(cells) and len({c.name for c in cells}) == 9
    assert frontier_sizes.chosen(cells, ["16:256", "4:320"], 0)[0] in cells
    assert frontier_sizes.chosen(cells, ["4:320"], 3) == [frontier_sizes.Cell(4, 320, 3)]


@pytest.mark.slow
def test_a_pass_is_timed_and_scored() -> None:
    """Of the dense model, a reducer and smaller images: the trunk is a part of the whole, and smaller images are cheaper."""
    config = kept.configured("", **{"input.max_side": 112})
    wanted = ["subscene:ratio=0.5", "come:ratio=0.5,group=2x2"]
    found, left_out = kept.variants(_backbone(config), config, wanted, (0.5,))
    variants = list(found.values())
    assert [v.name.split()[0] for v in variants] == ["dense", "subscene", "come", "resolution"] and not left_out
    width, height = frontier_sizes.size_of(variants[0].backbone, variants[0].config)
    truth = frontier_sizes.room(20_000_000, 2, width, height)
    for v in variants:
        prediction, times = frontier_sizes.run(v, truth)
        row = frontier_sizes.scored(prediction, truth)
        assert 0 < times["trunk"] < times["total"] and prediction.depth.shape == truth.depth.shape
        assert 0 < row["abs_rel"] < 2 and (row["kept_tokens"] < 1) == v.name.startswith(("come", "resolution"))
        np.testing.assert_allclose(prediction.depth, v.predict(truth).depth, rtol=1e-4)


def test_a_reducer_is_compared_with_its_own_baseline() -> None:
    rows = [{"a": {"abs_rel": 0.1, "delta": 0.5, "rotation_deg": 1 + i / 9, "ate": 0.1},
             "b": {"abs_rel": 0.2, "delta": 0.5, "rotation_deg": 1 + i / 9, "ate": 0.1}} for i in range(8)]  # fmt: skip
    found = frontier_sizes.own_of(rows, {"a": ["b"]})["a"]["b"]
    assert (
        found["abs_rel"]["value"] == pytest.approx(-0.5)
        and found["abs_rel"]["sure"]
        and not found["rotation_deg"]["sure"]
    )


def test_each_variant_of_a_whole_recording_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def whole(source: Any, variants: list[Any], stopped: Any) -> Any:
        ran.extend(v.name for v in variants)
        modes = {mode: {"ate": 0.1, "kept_tokens": 1.0} for mode in ("none", "bundle")}
        return {"baselines": {"straight line": {"ate": len(ran)}}, "variants": {v.name: modes for v in variants}}

    monkeypatch.setattr(frontier_whole, "whole", whole)
    source = argparse.Namespace(label="office")
    for _ in range(2):
        store = kept.Kept(tmp_path, "runs")
        about = frontier_whole.measured(source, [made(DENSE), made("come")], store)
    assert ran == [DENSE, "come"] and list(about["variants"]) == ran
    assert about["baselines"] == {"straight line": {"ate": 1}}  # of the first one


# Thin structures


def counts(structure: list[float], ring: list[float]) -> dict[str, Any]:
    return {**thin.counted(ThinMargins(np.array(structure), np.array(ring))), "error": 1.0 * len(structure)}


def test_recall_at_a_precision() -> None:
    """Structure at -1 and at +1 of the middle, ring at 0.5 and never: half of the structure is found with all of the precision."""
    found = thin.Counts.of([{"dense": counts([-1, 1], [0.5, np.inf]), thin.CONSTANT: counts([-1, np.inf], [-1, -1])}])
    recall, precision = found.curve("dense", np.array([0]))
    assert thin.recall_at(recall, precision, 1.0) == 0.5 and thin.recall_at(recall, precision, 0.6) == 1.0
    assert thin.recall_at(recall, precision, 1.1) == 0.0
    row = found.figures(np.array([0]))
    assert row["dense"]["recall"] == 0.5 and row["dense"]["precision"] == 1.0 and row["dense"]["least precision"] == 0.5
    assert row[thin.CONSTANT]["precision"] == pytest.approx(1 / 3) and row["dense"][thin.AS_CONSTANT] == 1.0
    assert row["dense"][thin.MEAN] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3) and row["dense"][thin.ERROR] == 1.0


def test_what_the_edge_vote_brings_back() -> None:
    figures = {
        DENSE: {thin.MEAN: 0.8, thin.ERROR: 0.2},
        "m": {thin.MEAN: 0.4, thin.ERROR: 0.6},
        "v": {thin.MEAN: 0.7, thin.ERROR: 0.5},
    }
    assert thin.recovered(figures, "m", "v", thin.MEAN) == pytest.approx(0.75)
    assert thin.recovered(figures, "m", "v", thin.ERROR) == pytest.approx(0.25)
    assert np.isnan(thin.recovered(figures, DENSE, "v", thin.MEAN))  # nothing was lost
    assert thin.share(thin.bounds(float("nan"), [float("nan")])) == "nothing is lost"


# Difficulty, curve, pictures


def test_windows_are_cut_in_thirds_by_their_difficulty() -> None:
    def row(i: int, error: float) -> dict[str, Any]:
        scores = {
            "abs_rel": [error],
            "delta": [1 - error],
            "rotation_deg": [error, error],
            "direction_deg": [],
            "length_ratio": [],
        }
        trivial = {
            "constant abs_rel": [0.5],
            "mean map abs_rel": [0.4],
            "constant delta": [0.3],
            "mean map delta": [0.2],
            "no rotation_deg": [9.0],
        }
        return {"scores": scores, "trivial": trivial, "difficulty": {"parallax": float(-i)}}

    models = {"old": [row(i, 0.2) for i in range(9)], "new": [row(i, 0.01 * i) for i in range(9)]}
    parts = by_difficulty.by_measure(models)["parallax"]
    assert [(p["low"], p["high"], p["windows"]) for p in parts] == [(-8, -6, 3), (-5, -3, 3), (-2, 0, 3)]
    assert parts[0]["scores"]["new"]["abs_rel"] == pytest.approx(0.07) and parts[0]["scores"]["old"][
        "abs_rel"
    ] == pytest.approx(0.2)
    assert parts[0]["scores"][by_difficulty.TRIVIAL] == {"delta": 0.3, "abs_rel": 0.4, "rotation_deg": 9.0}
    assert parts[0]["vs_before"]["value"] < 0
    found = {
        "models": list(models),
        "lengths": {"4": by_difficulty.part_of(models, range(9))},
        "by": {"parallax": parts},
    }
    text = by_difficulty.text_of(found, "", ["abc"])
    assert "| 4 images | 9 | 0.800 / 0.960 / 0.300 | 0.200 / 0.040 / 0.400 |" in text


def test_a_log_without_scores_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    for content in ("{", '{"a": 1}', "[3]"):
        path.write_text(content)
        with pytest.raises(DatasetError, match=r"is no log\.json of come_ros train"):
            training_curve.read(path)
    path.write_text('[{"step": 2, "scores": {"a": 1}}, {"step": 1, "scores": {"a": 1}}, {"step": 3}]')
    assert [row["step"] for row in training_curve.read(path)] == [1, 2]


def test_pictures_of_runs_are_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, depth = rng.integers(0, 255, (12, 16, 3), np.uint8), rng.uniform(1, 2, (12, 16)).astype(np.float32)
    found = {"rooms 0": {n: side_by_side.Seen(image, depth, depth, 0.1) for n in ("old", "new")},
             "office 1": {n: side_by_side.Seen(image, depth, None, float("nan")) for n in ("old", "new")}}  # fmt: skip
    side_by_side.draw(tmp_path / "side.png", found)
    assert "| office 1 | no truth | no truth |" in side_by_side.text_of(found, "")
    scores = {"abs_rel": 0.2, "delta": 0.8, "rotation_deg": 3.0, "direction_deg": float("nan"), "windows": 2}
    log = [{"step": 5, "frames": 80, "seconds": 9, "depth": 0.3, "scores": {"figure": 1, "rooms": scores}}] * 2
    run = {
        "name": "new",
        "earlier": "old",
        "log": log,
        "before": {"rooms": scores},
        "baselines": {"rooms": {"constant abs_rel": 0.3}},
    }
    training_curve.draw(tmp_path / "curve.png", run)
    assert "| depth, AbsRel | 0.200 | 0.200 | 0.200 | 0.200 | 0.300 |" in training_curve.text_of(run, "", ["abc"])
    assert (tmp_path / "side.png").stat().st_size > 10_000 and (tmp_path / "curve.png").stat().st_size > 10_000


def test_a_picture_is_of_the_middle_of_a_recording() -> None:
    class Recorded:
        rendered, label = False, "office"

        def windows(self, cut: Any, backbone: Any) -> Any:
            assert cut.most == 3
            return (WindowTruth("office", i, np.zeros((4, 8, 8, 3), np.uint8)) for i in range(3))

    assert list(side_by_side.windows([Recorded()], 1, None)) == ["office 1"]
