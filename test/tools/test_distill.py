"""`come_ros distill` on recordings: a predictor comes out that Co-Me can use; a run that was broken off goes on."""

import argparse
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from marks import gives
from PIL import Image

from come_ros import __version__
from come_ros.accelerators import make_accelerator
from come_ros.accelerators.confidence import default_block
from come_ros.backbones.checkpoint import bundled_weights, load_vggt
from come_ros.camera.preprocess import PlainSizes
from come_ros.companions import made_for, said_by
from come_ros.config import Config
from come_ros.errors import DatasetError
from come_ros.fleet.record import Inputs, Record, write_record
from come_ros.tools import cli, distill
from come_ros.tools.arguments import training_folder
from come_ros.tools.distill import rate_at
from come_ros.training.data import RecordedWindows, draw_batch
from come_ros.training.predictor import Student


def folder_of_images(path, count, size=(112, 84), seed=0):
    """Images of moving blocks: image i has the number i in its first pixel."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (10, 16, 3), np.uint8).repeat(12, 0).repeat(12, 1)
    for i in range(count):
        image = np.roll(texture, 3 * i, axis=1)[: size[1], : size[0]].copy()
        image[:14, :14] = i
        Image.fromarray(image).save(path / f"{i:03}.png")
    return str(path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two recordings of other shapes."""
    at = tmp_path_factory.mktemp("recordings")
    return folder_of_images(at / "wide", 30), folder_of_images(at / "tall", 12, (112, 112), seed=1)


def run(out, sources, *words):
    given = [word for source in sources for word in ("--source", source)]
    small = ["--batch", "4", "--dim", "8", "--device", "cpu"]
    return cli.main(["distill", "-o", str(out), *given, *small, *map(str, words)])


@pytest.fixture(scope="module")
@gives("slow")
def done(tmp_path_factory, sources):
    """A run of three steps."""
    out = tmp_path_factory.mktemp("distilled") / "out"
    assert run(out, sources, "--steps", 3) == 0
    return out


def copied(done, to):
    to.mkdir()
    for file in done.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.mark.slow
def test_a_predictor_comes_out_that_the_accelerator_takes(done):
    assert {p.name for p in done.iterdir()} == {"predictor.safetensors", "state.pt", "log.json", "curve.png"}
    log = json.loads((done / "log.json").read_text())
    assert [entry["step"] for entry in log] == [0, 3] and log[0]["loss"] is None and 0 < log[1]["loss"] < 10
    assert all(-1 <= e["spearman"] <= 1 and 0 <= e["mask_iou"] <= 1 for e in log)
    assert made_for(bundled_weights()).items() <= said_by(str(done / "predictor.safetensors")).items()
    model = load_vggt(bundled_weights())
    config = Config.from_flat(
        {"accelerator.name": "come", "accelerator.predictor": str(done / "predictor.safetensors")}
    )
    accelerator = make_accelerator(config, model.shape, "")
    depth = len(model.encoder_blocks())
    assert accelerator.predictor.dim == 8 and accelerator.plan_block(depth) == default_block(depth)


def test_windows_are_of_one_recording_and_never_of_what_is_held_back(sources):
    data = RecordedWindows(list(sources), PlainSizes(14, 112), 112, seed=5)
    assert [len(t) for t in data.train] == [27, 10] and [len(h) for h in data.held] == [3, 2]
    seen = set()
    for _ in range(60):
        windows = data.batch(2, 6)
        assert windows.shape in ((2, 6, 3, 84, 112), (2, 6, 3, 112, 112)) and windows.dtype == np.uint8
        for window in windows:
            numbers = window[:, 0, 4, 4].tolist()
            assert len(set(numbers)) == 6 and max(numbers) - min(numbers) < 24  # neighbours, in any order
            seen |= {(window.shape[-2], n) for n in numbers}
    assert {n for height, n in seen if height == 84} <= set(range(27)) and len(seen) > 30
    assert {n for height, n in seen if height == 112} <= set(range(10))
    held = [w[:, 0, 4, 4].tolist() for w in data.validation()]
    assert held == [[27, 28, 29], [10, 11]]


def test_the_output_of_a_fleet_stands_for_its_recordings(sources, tmp_path):
    for i, source in enumerate(sources):
        place = tmp_path / f"r{i}"
        place.mkdir()
        write_record(place, Record(Inputs(__version__, "anywhere", str(source))))
    data = RecordedWindows([str(tmp_path)], PlainSizes(14, 112), 112, seed=5)
    assert [len(t) for t in data.train] == [27, 10]


def test_too_few_images_are_an_error_that_says_so(tmp_path):
    few = folder_of_images(tmp_path / "few", 9)
    with pytest.raises(DatasetError, match=r"few has 9 images .*give 10 or more"):
        RecordedWindows([few], PlainSizes(14, 112), 112, 0)


@pytest.mark.slow
def test_a_run_goes_on_to_more_steps_on_the_curve_of_its_new_length(done, sources, tmp_path, monkeypatch, capsys):
    out = copied(done, tmp_path / "out")
    before = torch.load(out / "state.pt", weights_only=True)
    rates, learn = [], Student.learn

    def watched(student, tokens, wanted, rate):
        if not rates:
            assert all(torch.equal(v, before["predictor"][k]) for k, v in student.predictor.state_dict().items())
            assert student.optimiser.state_dict()["state"][0]["step"] == 3
        rates.append(rate)
        return learn(student, tokens, wanted, rate)

    monkeypatch.setattr(Student, "learn", watched)
    assert run(out, sources, "--steps", 5, "--resume") == 0
    assert rates == [rate_at(step, 5) for step in (3, 4)] and rate_at(3, 5) > 100 * rate_at(3, 3)
    assert "continuing from step 3 with --steps 5 instead of 3" in capsys.readouterr().err
    assert [e["step"] for e in json.loads((out / "log.json").read_text())] == [0, 3, 5]
    assert (out / "predictor.safetensors").read_bytes() != (done / "predictor.safetensors").read_bytes()


@pytest.mark.slow
def test_a_resumed_run_sees_other_images_than_the_first_ones_again(done, sources, tmp_path, monkeypatch):
    batches, draw = [], draw_batch
    monkeypatch.setattr(distill, "draw_batch", lambda *args: batches.append(draw(*args)) or batches[-1])
    assert run(tmp_path / "new", sources, "--steps", 1) == 0
    assert run(copied(done, tmp_path / "out"), sources, "--steps", 4, "--resume") == 0
    first, resumed = batches
    assert first.shape != resumed.shape or (first != resumed).any()


@pytest.mark.slow
def test_a_signal_keeps_the_steps_before_it(sources, tmp_path, monkeypatch, capsys):
    out, batches = tmp_path / "out", []

    def drawn(*arguments):
        batches.append(draw_batch(*arguments))
        if len(batches) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)  # a batch that is long in the making
        return batches[-1]

    monkeypatch.setattr(distill, "draw_batch", drawn)
    assert run(out, sources, "--steps", 3) == 128 + signal.SIGINT
    assert f"step 2 is in {out}: continue with --resume" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["state.pt"]
    assert run(out, sources, "--steps", 3, "--resume") == 0 and (out / "predictor.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--steps", 3], "has 3 steps already, and --steps asks for 3"),
        (["--steps", 9, "--scope", "frame"], "of a run with --scope window, not frame"),
        (["--steps", 9, "--loss", "mse", "--dim", "16"], "--dim 8, not 16, --loss ranking, not mse"),
    ],
)
def test_what_cannot_go_on_says_why(done, sources, words, told, capsys):
    before = {p.name: p.read_bytes() for p in Path(done).iterdir()}
    assert run(done, sources, *words, "--resume") == 1
    assert told in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in Path(done).iterdir()} == before


@pytest.mark.slow
def test_a_missing_or_damaged_state_says_so(sources, tmp_path, capsys):
    assert run(tmp_path / "none", sources, "--resume") == 1
    assert "no training checkpoint" in capsys.readouterr().err
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "state.pt").write_bytes(b"half a file")
    assert run(tmp_path / "damaged", sources, "--resume") == 1
    assert "it is damaged" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["mapanything", "pi3", "da3"])
def test_predictors_of_other_backbones(tmp_path, sources, backbone):
    """The weights file says which backbone it is of; the predictor fits that model, at the block it was trained on."""
    from models import tiny

    from come_ros.backbones import load_backbone
    from come_ros.backbones.checkpoint import save_checkpoint

    weights = str(tmp_path / "m.safetensors")
    save_checkpoint(weights, tiny(backbone, seed=2), torch.float32)
    assert run(tmp_path / "out", sources[:1], "--steps", 1, "--weights", weights, "--block", 1) == 0
    predictor = str(tmp_path / "out" / "predictor.safetensors")
    config = Config().replace(
        backbone=backbone, weights=weights, device="cpu", threads=1,
        **{"accelerator.name": "come", "accelerator.predictor": predictor, "accelerator.group": "2x2"},
    )  # fmt: skip
    made = load_backbone(config)
    assert made.accelerator.block == 1
    images = np.random.default_rng(0).integers(0, 256, (2, 56, 70, 3), np.uint8)
    assert made.predict(images).kept_ratio < 0.8


def test_a_run_that_is_there_is_neither_replaced_nor_continued_unasked(done, sources, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in done.iterdir()}
    assert run(done, sources, "--steps", 3) == 1
    assert "--resume" in (said := capsys.readouterr().err) and "--overwrite" in said and "predictor.safetensors" in said
    assert {path.name: path.read_bytes() for path in done.iterdir()} == before
    (tmp_path / "file").touch()
    assert run(tmp_path / "file", sources, "--steps", 3) == 1
    assert "choose a folder" in (said := capsys.readouterr().err) and "Traceback" not in said
    (tmp_path / "file").unlink()
    # another folder with other things in it is no run
    (tmp_path / "notes.txt").write_text("mine")
    args = argparse.Namespace(output=str(tmp_path), resume=False, overwrite=False)
    assert training_folder(args, "state.pt") == tmp_path
