"""Confidence from measured errors: the depth stays, the confidence follows the place, and the file keeps it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal

import numpy as np
import pytest
import torch
from training.test_long_run import PLAN, SMALL, small  # noqa: F401

from come_ros.accelerators import NoAccelerator
from come_ros.backbones.checkpoint import load_model, save_checkpoint
from come_ros.backbones.heads import place_terms
from come_ros.backbones.vggt import VGGT
from come_ros.datasets.material import Material
from come_ros.errors import Stopped
from come_ros.tools import train as command
from come_ros.training import confidence, long_run
from come_ros.training.confidence import Fit, Samples, altered, applied, expected_and_actual, fit, measure

FOUND = Fit(0.5, 0.25, np.array([0.5, -1.0, -2.0]))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VGGT(SMALL).eval()


def depth_and_confidence(model, images):
    with torch.inference_mode():
        out, _ = model(images, NoAccelerator(), ("depth",))
    return out["depth"], out["depth_conf"]


def samples(n=4000, seed=0):
    """Errors that depend on the place, and on nothing that the raw confidence knows."""
    rng = np.random.default_rng(seed)
    y, x = rng.uniform(-0.5, 0.5, (2, n))
    place = np.stack((np.ones(n), y, y * y, x * x), axis=1)
    error = rng.exponential(np.exp(-(2 + y - 3 * x * x)))
    return Samples(place, rng.normal(1, 0.5, n), error)


def test_place_terms_count_from_the_centre():
    terms = place_terms(2, 4, torch.device("cpu"))
    assert terms.shape == (3, 2, 4)
    torch.testing.assert_close(terms[0, :, 0], torch.tensor([-0.25, 0.25]))
    torch.testing.assert_close(terms[1, 0], torch.full((4,), 0.0625))
    torch.testing.assert_close(terms[2, 0], torch.tensor([0.375, 0.125, 0.125, 0.375]) ** 2)


def test_depth_stays_to_the_last_digit_and_confidence_is_the_fit(model):
    images = torch.rand(1, 2, 3, 48, 64)
    depth, before = depth_and_confidence(model, images)
    new_depth, after = depth_and_confidence(applied(model, FOUND), images)
    assert torch.equal(depth, new_depth)
    by_place = torch.einsum("n,nhw->hw", torch.from_numpy(FOUND.place).float(), place_terms(48, 64, images.device))
    want = 1 + (FOUND.kept * (before - 1).log() + FOUND.offset + by_place).exp()
    torch.testing.assert_close(after, want, rtol=1e-4, atol=1e-4)
    assert not model.sizes.by_place and model.depth_head.place is None  # the one before is as it was


def test_a_second_time_builds_on_the_first(model):
    images = torch.rand(1, 1, 3, 48, 64)
    once = applied(model, FOUND)
    _, before = depth_and_confidence(once, images)
    _, after = depth_and_confidence(applied(once, Fit(0.5, 0.0, np.zeros(3))), images)
    torch.testing.assert_close((after - 1).log(), 0.5 * (before - 1).log(), rtol=1e-4, atol=1e-4)


def test_a_file_keeps_it_and_older_files_still_load(model, tmp_path):
    for name, one in (("old", model), ("new", applied(model, FOUND))):
        path = str(tmp_path / f"{name}.safetensors")
        save_checkpoint(path, one, torch.float32)
        again = load_model("vggt", path).eval()
        assert again.sizes.by_place == (name == "new")
        images = torch.rand(1, 1, 3, 48, 64)
        assert torch.equal(depth_and_confidence(again, images)[1], depth_and_confidence(one, images)[1])
        load_model("lingbot", path)  # the same weights frame by frame


def test_the_fit_finds_what_depends_on_the_place_and_the_right_level():
    found = fit(samples(), kept=0.0)
    np.testing.assert_allclose(found.place, [1, 0, -3], atol=0.8)
    other = samples(seed=1)
    sure = found(other)
    assert np.exp(-sure).mean() == pytest.approx(other.error.mean(), rel=0.15)
    rows = expected_and_actual(sure, other.error)
    assert [a for a, _ in rows] == sorted(a for a, _ in rows)
    assert all(b == pytest.approx(a, rel=0.35) for a, b in rows) and rows[-1][1] > 1.5 * rows[0][1]


def test_kept_is_the_share_of_the_own_deviation():
    given = samples()
    noise = given.sureness - 1
    change = fit(given, kept=0.4)(given) - fit(given, kept=0.0)(given)
    assert np.polyfit(noise, change, 1)[0] == pytest.approx(0.4, abs=0.01)


def test_altered_images_stay_images_and_differ():
    rng = np.random.default_rng(0)
    images = np.full((2, 48, 64, 3), 90, np.uint8)
    found = [altered(images, (np.zeros((40, 50, 3), np.uint8),), rng) for _ in range(10)]
    assert all(a.shape == images.shape and a.dtype == np.uint8 for a in found)
    assert all(np.any(a != images) for a in found)


def test_errors_are_measured_about_the_median_and_again_alike(model):
    one, other = (measure(model, Material(), 2, dataclasses.replace(PLAN.mix, lengths={2: 1.0})) for _ in range(2))
    assert one.place.shape == (2 * 2 * 6 * 8, 4) and np.all(one.place[:, 0] == 1)
    np.testing.assert_array_equal(one.error, other.error)
    assert np.all(one.error >= 0) and np.isfinite(one.sureness).all()


def arguments(out, target):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["--variant", "small2", "-o", str(out), "--export", str(target), "--confidence", "2"])


def test_the_command_exports_it_or_nothing(small, tmp_path, monkeypatch, capsys):  # noqa: F811
    out, target = tmp_path / "run", tmp_path / "small.safetensors"
    out.mkdir()
    long_run.new_state("small2", 0, PLAN, None, small).save(str(out / "last.pt"))
    given = samples()

    def stopped(*rest):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("a signal ends it")

    monkeypatch.setattr(confidence, "measure", stopped)
    with pytest.raises(Stopped, match="is not written: run it again"):
        command.run(arguments(out, target))
    assert not target.exists()
    monkeypatch.setattr(confidence, "measure", lambda *rest: given)
    command.run(arguments(out, target))
    assert "confidence: expected/actual error of the log depth on 2 windows" in capsys.readouterr().out
    before, after = long_run.restore(str(out / "last.pt")).average.model, load_model("vggt", str(target))
    assert after.sizes == dataclasses.replace(SMALL, by_place=True)
    want = applied(before, fit(given)).depth_head
    torch.testing.assert_close(after.depth_head.place, want.place, rtol=2e-3, atol=2e-3)
    again = tmp_path / "again.safetensors"
    options = arguments(tmp_path / "empty", again)
    options.start = str(target)  # a weights file, which has been through it, in place of a checkpoint
    command.run(options)
    new = load_model("vggt", str(again)).eval()
    images = torch.rand(1, 1, 3, 48, 64)
    assert torch.equal(depth_and_confidence(new, images)[0], depth_and_confidence(after.eval(), images)[0])
    kept = fit(given)
    torch.testing.assert_close(
        new.depth_head.place,
        kept.kept * after.depth_head.place + torch.tensor(kept.place).float(),
        rtol=2e-3,
        atol=2e-3,
    )
