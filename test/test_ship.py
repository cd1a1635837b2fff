"""New weights of the bundled model are put in place as a whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmark import ship
from benchmark.accuracy import candidate

from come_ros.bundled import BUNDLED, MODEL_FOLDER
from come_ros.companions import FINGERPRINT
from come_ros.errors import CheckpointError
from come_ros.files import write_safetensors
from come_ros.weights import read_checkpoint

TEXT = f'FOLDER = "x"\nBUNDLED = "{BUNDLED}"\n'


@pytest.fixture
def place(tmp_path: Path) -> tuple[dict[str, Path], Path, Path]:
    """The files of a model named `other`, a folder with those that ship, and the module that names them."""
    for folder in ("made", "models"):
        (tmp_path / folder).mkdir()
    made = ship.files_of(tmp_path / "made", "other")
    for what, path in ship.files_of(Path(MODEL_FOLDER), BUNDLED).items():
        shutil.copyfile(path, made[what])
        shutil.copyfile(path, tmp_path / "models" / path.name)
    setting = tmp_path / "bundled.py"
    setting.write_text(TEXT)
    return made, tmp_path / "models", setting


def test_a_model_takes_the_place_of_the_one_before(place):
    made, models, setting = place
    ship.install(made, "other", models, setting)
    assert sorted(p.name for p in models.iterdir()) == sorted(p.name for p in made.values())
    assert setting.read_text() == TEXT.replace(BUNDLED, "other")
    ship.install(made, "other", models, setting)  # again, under the same name
    assert len(list(models.iterdir())) == len(made)


@pytest.mark.parametrize("what", ["come", "layer plan", "pace"])
def test_what_is_missing_or_of_another_model_changes_nothing(place, what):
    made, models, setting = place
    before = {p.name: p.read_bytes() for p in models.iterdir()}
    made[what].unlink()
    with pytest.raises(CheckpointError, match="is missing: run this without --install first"):
        ship.install(made, "other", models, setting)
    if what == "layer plan":
        text = ship.files_of(Path(MODEL_FOLDER), BUNDLED)[what].read_text()
        made[what].write_text(json.dumps({**json.loads(text), "fingerprint": "0" * 16}))
        with pytest.raises(CheckpointError, match=r"was made for other weights.*here: delete it"):
            ship.install(made, "other", models, setting)
    else:
        shutil.copyfile(made["weights"], made[what])
        with pytest.raises(CheckpointError):
            ship.install(made, "other", models, setting)
    assert before == {p.name: p.read_bytes() for p in models.iterdir()} and setting.read_text() == TEXT


@pytest.mark.parametrize("what", ["come", "layer plan", "pace"])
def test_what_says_that_it_is_of_weights_of_the_same_sizes_is_not_installed(place, what):
    made, models, setting = place
    if what == "layer plan":
        content = json.loads(made[what].read_text())
        made[what].write_text(json.dumps({**content, FINGERPRINT: "0" * 16}))
    else:
        tensors, metadata = read_checkpoint(str(made[what]))
        write_safetensors(made[what], tensors, {**metadata, FINGERPRINT: "0" * 16})
    with pytest.raises(CheckpointError, match=r"fingerprint 0000000000000000.*here: delete it"):
        ship.install(made, "other", models, setting)
    assert setting.read_text() == TEXT


def test_what_is_made_is_what_is_installed(tmp_path):
    """Every file that ships of a model, but its weights, has the command that makes it."""
    weights = ship.files_of(tmp_path, "other")["weights"]
    for quick in (False, True):
        made = ship.commands(weights, tmp_path, quick)
        assert set(made) | {"weights"} == set(ship.files_of(tmp_path, "other"))
        assert all(str(weights) in words for words, _ in made.values())
    (tmp_path / "pace").mkdir()
    (tmp_path / "pace" / "state.pt").touch()
    again = ship.commands(weights, tmp_path, False)
    assert "--resume" in again["pace"][0] and "--resume" not in again["come"][0]


def run_of(ate: float, depth: float | None) -> dict[str, object]:
    return {
        "ate": {"come_ros": ate, "straight line": 0.5, "random walk": float("nan")}, "rotation_median": None, "step": None,
        "abs_rel_once": depth, "abs_rel": depth, "refused": 1, "depth": {"constant depth": 0.4} if depth else {},
    }  # fmt: skip


def test_a_candidate_is_compared_source_by_source():
    product = {
        candidate.OLD: {"a": {m: run_of(0.2, 0.2) for m in candidate.MODES}, "b": {m: run_of(0.1, None) for m in candidate.MODES}},
        candidate.NEW: {"a": {m: run_of(0.1, 0.3) for m in candidate.MODES}, "b": {m: run_of(0.2, None) for m in candidate.MODES}},
    }  # fmt: skip
    found = {(name, mode): rest for name, mode, *rest in candidate.averages(product)}
    assert found["ATE, m", "bundle"] == [pytest.approx(1.0), 1, 2]
    assert found["AbsRel, scaled once", "none"] == [pytest.approx(1.5), 1, 1], "where there is a truth"
    table = candidate.product_table(product)
    assert "| a | ATE, m | 0.200 | 0.100 | 0.200 | 0.100 | 0.500 |" in table
    assert (
        "| a | AbsRel, scaled once | 0.200 | 0.300 | 0.200 | 0.300 | 0.400 |" in table and "| b | AbsRel" not in table
    )
    scores = {"rooms": {"delta": 0.8, "rotation_deg": float("nan")}}
    passes = {name: {"scores": scores, "baselines": {"rooms": {"constant delta": 0.5, "mean map delta": 0.6}}}
              for name in (candidate.OLD, candidate.NEW)}  # fmt: skip
    assert candidate.passes_table(passes).splitlines()[2:] == ["| rooms, delta | 0.800 | 0.800 | 0.600 |"]
