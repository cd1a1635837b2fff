"""come_ros train-pace: its target, its losses, and a run from start to end."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from come_ros.accelerators.pace_networks import load_networks, make_networks
from come_ros.backbones.checkpoint import load_vggt, save_checkpoint
from come_ros.backbones.vggt import VGGT, VGGTSizes
from come_ros.companions import made_for, said_by
from come_ros.tools import cli, train_pace
from come_ros.training import loop, pace

SIZES = VGGTSizes(
    image_side=56, native_side=56, dim=32, encoder_depth=1, encoder_heads=2, depth=2, heads=2,
    taps=(0, 0, 1, 1), camera_depth=1, camera_heads=2, features=8, channels=(8, 8, 8, 8),
)  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = VGGT(SIZES)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    path = str(tmp_path_factory.mktemp("weights") / "small.safetensors")
    save_checkpoint(path, model)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(12):
        noise = np.random.default_rng(i).integers(0, 256, (42, 56, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i:02d}.png")
    return str(folder)


def slow_target(attention, frames, special, grid, alpha):
    n = len(attention)
    t, p = n // frames, grid[0] * grid[1]
    out = torch.zeros(frames, p)
    for f in range(frames):
        patches = [f * t + special + i for i in range(p)]
        camera = torch.tensor([float(attention[f * t, i]) for i in patches])
        most = torch.tensor([max(float(attention[i, j]) for j in range(n) if j != i) for i in patches])
        for share, x in ((alpha, camera), (1 - alpha, most)):
            out[f] += share * (x - x.min()) / (x.max() - x.min())
    return out.view(frames, *grid)


def test_the_target_is_where_the_model_looks():
    frames, special, grid = 3, 2, (2, 3)
    n = frames * (special + 6)
    attention = torch.rand(2, n, n, generator=torch.Generator().manual_seed(0)).softmax(-1)
    got = pace.attention_target(attention, frames, special, grid)
    for b in range(2):
        torch.testing.assert_close(got[b], slow_target(attention[b], frames, special, grid, 0.25))
    assert got.min() >= 0 and got.max() <= 1
    even = torch.full((1, n, n), 1 / n)  # looks everywhere alike: nothing to learn, but no NaN
    assert pace.attention_target(even, frames, special, grid).isfinite().all()


def test_attention_is_looked_at_some_rows_at_a_time(monkeypatch):
    q, k = torch.randn(2, 1, 3, 11, 4, generator=torch.Generator().manual_seed(1))
    want = (q @ k.transpose(2, 3) / 2).softmax(-1).mean(1)
    monkeypatch.setattr(pace, "QUERIES", 4)
    torch.testing.assert_close(pace.mean_attention(q, k), want)
    torch.testing.assert_close(want.sum(-1), torch.ones(1, 11))


def test_restoring_exactly_costs_nothing_and_only_missing_patches_count():
    levels = {0: torch.randn(1, 2, 5, 6), 3: torch.randn(1, 2, 5, 6)}
    missing = torch.zeros(1, 2, 5, dtype=torch.bool)
    missing[:, :, 1:3] = True
    assert float(pace.restore_loss(levels, levels, missing)) == pytest.approx(0, abs=1e-6)
    kept_differ = {tap: t.clone() for tap, t in levels.items()}
    for t in kept_differ.values():
        t[:, :, 0] += 1
    assert float(pace.restore_loss(kept_differ, levels, missing)) == pytest.approx(0, abs=1e-6)
    for t in kept_differ.values():
        t[:, :, 1] *= -1
    assert float(pace.restore_loss(kept_differ, levels, missing)) > 0.5
    error = pace.patch_errors(kept_differ, levels)
    assert error.shape == (1, 2, 5) and error[:, :, [0, 1]].min() > 0 == error[:, :, 2:].max()
    large = {tap: 100 * t for tap, t in levels.items()}  # a level of large values is worth no more than another
    torch.testing.assert_close(pace.patch_errors({t: 100 * x for t, x in kept_differ.items()}, large), error)


def test_a_scorer_is_told_the_ranks_of_the_errors_of_what_was_missing():
    missing = torch.tensor([[[True, False, True, True], [False, True, True, False]]])
    error = torch.tensor([[[5.0, 99.0, 1.0, 2.0], [99.0, 7.0, 8.0, 99.0]]])
    want = torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0])
    logit = torch.randn(1, 2, 4, requires_grad=True)
    loss = pace.error_loss(logit, error, missing)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logit[missing], want))
    loss.backward()
    assert (logit.grad[missing] != 0).all() and (logit.grad[~missing] == 0).all()


def test_nothing_is_left_to_rebuild_where_all_is_kept(weights):
    """The whole model's levels, taken apart and put together, are its levels."""
    model = load_vggt(weights).eval().requires_grad_(False)
    _, restorer = make_networks(model.shape, 16)
    lesson = pace.teach(model, {"images": torch.randint(0, 256, (1, 2, 3, 42, 56), dtype=torch.uint8)})
    got = pace.rebuilt(model, restorer, lesson, torch.arange(12).expand(2, -1))
    assert list(got) == list(lesson.levels)
    assert all(torch.equal(got[tap], level) for tap, level in lesson.levels.items())


@pytest.mark.parametrize("stage", [1, 2])
def test_either_stage_teaches_both_networks_and_leaves_the_model_alone(weights, stage):
    model = load_vggt(weights).eval().requires_grad_(False)
    torch.manual_seed(0)
    scorer, restorer = make_networks(model.shape, 16)
    batch = {"images": torch.randint(0, 256, (2, 2, 3, 42, 56), dtype=torch.uint8)}
    lesson = pace.teach(model, batch)
    optimiser = torch.optim.Adam([*scorer.parameters(), *restorer.parameters()], lr=3e-3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    totals = []
    for _ in range(8):
        if stage == 1:
            terms = pace.distill_losses(model, scorer, restorer, lesson, 0.5)
        else:
            terms = pace.refine_losses(model, scorer, restorer, {"ratio": 0.5, "spread": 1.0}, batch, lesson)
        loss = sum(terms.values()) - 0.9 * terms.get("task", 0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        totals.append({k: float(v.detach()) for k, v in terms.items()})
    assert all(p.grad is not None for p in [*scorer.parameters(), *restorer.parameters()])
    for name in ("restore", "distill") if stage == 1 else ("restore",):
        first, last = (np.mean([t[name] for t in part]) for part in (totals[:2], totals[-2:]))
        assert last < first, name
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.slow
def test_a_run_on_recordings_is_written_scored_and_resumed(weights, folder, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["train-pace", "-o", str(out), "--source", folder, "--weights", weights, "--batch", "4", "--dim", "8"]
    assert cli.main([*command, "--steps", "2", "--refine-steps", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    scores = result["scores"]
    for name in ("distilled", "refined"):
        assert -1 <= scores[f"{name} spearman"] <= 1 and -1 <= scores[f"{name} spearman_error"] <= 1
        assert all(
            scores[f"{name}, {way}"] > 0 for way in ("copied", "restored", "at random", "evenly", "by attention")
        )
    assert scores["dense"] == 0 and "dense abs_rel" not in scores  # no truth in recordings
    for name in ("pace", "distilled"):
        assert made_for(weights).items() <= said_by(str(out / f"{name}.safetensors")).items()
    model = load_vggt(weights)
    scorer, restorer = load_networks(result["pace"], model.shape)
    assert scorer.norm.weight.shape == (32,) and restorer.q.weight.shape[0] == 8 and float(scorer.spread) == 1
    written = {"pace.safetensors", "distilled.safetensors", "state.pt", "curve.png", "log.json", "comparison.md"}
    assert {p.name for p in out.iterdir()} == written
    text = (out / "comparison.md").read_text()
    assert all(
        f"| {name} | {choice}" in text
        for name in ("distilled", "refined")
        for choice in ("score, restorer", "at random")
    )

    assert cli.main([*command, "--steps", "2", "--refine-steps", "3", "--resume"]) == 1
    assert "run with --refine-steps 2, not 3" in capsys.readouterr().err
    assert cli.main([*command, "--steps", "2", "--refine-steps", "2", "--resume"]) == 0  # nothing left: the same again
    again = json.loads(capsys.readouterr().out)
    assert again["steps"] == 4 and again["scores"] == scores
    assert cli.main(["train-pace", "-o", str(tmp_path / "none"), "--weights", weights, "--resume"]) == 1
    assert "no training checkpoint" in capsys.readouterr().err
    assert cli.main([*command, "--ratio", "1"]) == 1 and "--ratio is 1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_keeps_the_steps_before_it(weights, folder, tmp_path, monkeypatch, capsys):
    out, taught = tmp_path / "out", []
    command = ["train-pace", "-o", str(out), "--source", folder, "--weights", weights, "--batch", "4", "--dim", "8"]
    command += ["--steps", "2", "--refine-steps", "2"]

    def teach(*arguments, **options):
        taught.append(options)
        if len(taught) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return pace.teach(*arguments, **options)

    monkeypatch.setattr(train_pace, "teach", teach)
    assert cli.main(command) == 128 + signal.SIGTERM
    assert f"step 3 is in {out}: continue with --resume" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {"state.pt", "curve.png", "distilled.safetensors"}
    assert cli.main([*command, "--resume"]) == 0 and len(taught) == 5
    assert json.loads(capsys.readouterr().out)["steps"] == 4


def test_rooms_tell_the_truth(weights):
    """A batch of rooms: its own depth and poses are what the heads are compared with."""
    model = load_vggt(weights).eval().requires_grad_(False)
    pose = torch.eye(4).expand(1, 2, 4, 4)
    k = torch.tensor([[[50.0, 0, 28], [0, 50.0, 21], [0, 0, 1]]])
    images = torch.randint(0, 256, (1, 2, 3, 42, 56), dtype=torch.uint8)
    batch = {"images": images, "depth": torch.full((1, 2, 42, 56), 3.0), "camera_from_first": pose, "intrinsics": k}
    lesson = pace.teach(model, batch)
    assert float(lesson.want["depth"].std()) < 1e-6  # a wall, in units of the scene's size
    assert lesson.target.shape == (1, 2, 3, 4) and lesson.features.shape == (1, 2, 3, 4, 32)
    assert "depth" not in pace.teach(model, {"images": images}, heads=False).want


def test_the_rate_warms_up_and_ends_at_nothing():
    rates = [train_pace.rate_at(i / 100) for i in range(101)]
    assert rates[0] < rates[4] <= train_pace.RATE and max(rates) <= train_pace.RATE and rates[100] == pytest.approx(0)


def test_a_stage_ends_with_its_steps_or_its_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(train_pace.time, "monotonic", lambda: now[0])
    clock = loop.Clock(10, 100.0)
    assert clock.share(3) == 0.3
    now[0] = 60.0
    assert clock.share(3) == 0.6 and clock.share(10) == 1
    assert loop.Clock(10, 0.0).share(5) == 0.5 and loop.Clock(0, 0.0).share(0) == 1
