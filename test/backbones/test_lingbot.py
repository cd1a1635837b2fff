"""Files of LingBot-Map: which form they hold, whose they are not, and the published sizes."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from models import tiny

from come_ros.accelerators import NoAccelerator
from come_ros.backbones import load_backbone
from come_ros.backbones.checkpoint import bundled_weights, load_model, save_checkpoint
from come_ros.backbones.lingbot import AS_VGGT, VARIANTS, LingBot
from come_ros.backbones.stream import Step
from come_ros.backbones.vggt import VARIANTS as VGGT_VARIANTS
from come_ros.backbones.vggt import VGGT
from come_ros.config import Config
from come_ros.errors import CheckpointError


@pytest.fixture(scope="module")
def published():
    """Keys and shapes of the two published forms and of VGGT-1B, without memory for them."""
    with torch.device("meta"):
        return {name: LingBot(sizes) for name, sizes in VARIANTS.items()} | {"vggt": VGGT(VGGT_VARIANTS["1b"])}


def test_keys_shapes_and_parameters_are_those_of_the_published_files(published):
    def shapes(name):
        return {k: tuple(v.shape) for k, v in published[name].state_dict().items()}

    stream, first_stage, vggt = shapes("stream"), shapes("stage1"), shapes("vggt")
    assert len(stream) == 1342 and sum(p.numel() for p in published["stream"].parameters()) == 1_157_943_540
    assert stream["aggregator.scale_token"] == (1, 2, 1, 1024)
    assert stream == {k: v for k, v in vggt.items() if not k.startswith("point_head.")} | {
        "aggregator.scale_token": (1, 2, 1, 1024)
    }
    assert first_stage == vggt and sum(p.numel() for p in published["stage1"].parameters()) == 1_190_596_120
    parts = {
        part: sum(p.numel() for k, p in published["stream"].named_parameters() if k.startswith(part))
        for part in ("aggregator.", "camera_head.", "depth_head.")
    }
    assert parts == {"aggregator.": 909_114_368, "camera_head.": 216_174_610, "depth_head.": 32_654_562}


def form(**more):
    return tiny("lingbot", **more).state_dict()


FIRST_STAGE = {"causal": False, "scale_token": False, "points": True, "rope_split": ()}


def test_which_form_a_file_holds_is_seen_from_its_keys():
    stream, first_stage = form(), form(**FIRST_STAGE)
    scale = {"aggregator.scale_token": stream["aggregator.scale_token"]}
    for state, wanted in ((stream, "stream"), (first_stage, "stage1"), (first_stage | scale, "stage1")):
        own = LingBot.own_names(state)
        assert LingBot.published_sizes(own) == VARIANTS[wanted]
        assert own.keys() == (stream if wanted == "stream" else first_stage).keys()


@pytest.fixture
def small(monkeypatch):
    """The published forms at a size for tests."""
    import come_ros.backbones.lingbot as lingbot
    import come_ros.backbones.vggt as vggt

    forms = {"stream": tiny("lingbot").sizes, "stage1": tiny("lingbot", **FIRST_STAGE).sizes}
    monkeypatch.setattr(lingbot, "VARIANTS", forms)
    monkeypatch.setattr(vggt, "VARIANTS", {"1b": tiny("vggt").sizes})


def test_published_files_load_strictly_and_one_wrong_tensor_is_named(small, tmp_path):
    path = str(tmp_path / "lingbot-map-long.pt")
    state = form()
    torch.save({"model": state}, path)  # as the reference stores it
    model = load_model("lingbot", path)
    assert model.causal and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert load_model("", path).name == "lingbot"
    with pytest.raises(CheckpointError, match="holds weights of the backbone lingbot, but vggt was asked for"):
        load_model("vggt", path)
    torch.save({k: v for k, v in state.items() if k != "depth_head.norm.bias"}, path)
    with pytest.raises(CheckpointError, match=r"1 missing: depth_head\.norm\.bias"):
        load_model("lingbot", path)
    torch.save({**state, "camera_head.more": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"1 unexpected: camera_head\.more"):
        load_model("lingbot", path)


def test_the_first_stage_is_lingbots_if_the_user_says_so(small, tmp_path, caplog):
    path = str(tmp_path / "lingbot-map-stage1.pt")
    state = form(**FIRST_STAGE)
    torch.save(state, path)
    ours = load_model("lingbot", path)
    assert not ours.causal and ours.camera_to_world
    with caplog.at_level(logging.WARNING, "come_ros"):
        assert not load_model("vggt", path).camera_to_world
    assert "if it is the first stage of LingBot-Map, set backbone to lingbot" in caplog.text
    torch.save({**state, "track_head.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="holds a track head, as those of VGGT do"):
        load_model("lingbot", path)
    caplog.clear()
    load_model("vggt", path)
    assert not caplog.text


def test_a_head_cannot_be_split_into_other_than_three_parts():
    with pytest.raises(
        ValueError, match=r"rope_split is \(4, 4\), but must be three even numbers, together the 16 channels"
    ):
        tiny("lingbot", rope_split=(4, 4))


@pytest.mark.parametrize("given", ["", "named"])
def test_the_bundled_model_runs_as_a_stream(given):
    """The weights of a VGGT of ours, frame by frame; its poses stay camera-from-world."""
    path = bundled_weights()
    backbone = load_backbone(Config(backbone="lingbot", weights=path if given else "", device="cpu"))
    windowed = load_model("vggt", path)
    model = backbone.model
    assert backbone.causal and backbone.description["weights"] == path and not model.camera_to_world
    assert model.state_dict().keys() == windowed.state_dict().keys()
    images = np.random.default_rng(0).integers(0, 256, (3, 3 * model.patch, 4 * model.patch, 3), np.uint8)
    cache = backbone.new_cache()
    first = backbone.predict(images[:1], step=Step(((0, ""),), cache))
    x = torch.from_numpy(images[:1]).permute(0, 3, 1, 2)[None].float() / 255
    with torch.inference_mode():  # a stream of one frame is a window of one
        alone, _ = windowed(x, NoAccelerator(), ("camera", "depth"))
    assert np.abs(first.depth - alone["depth"][0].numpy()).max() < 1e-5 * first.depth.max()
    assert np.abs(first.window_from_camera - alone["world_from_camera"][0].numpy()).max() < 1e-5
    more = backbone.predict(images, step=Step(tuple((i, "") for i in range(3)), cache))
    assert more.dense == (1, 2) and cache.restarts == 1 and np.isfinite(more.depth).all()


def test_a_stream_of_ours_comes_back_and_is_no_window(tmp_path):
    path = str(tmp_path / "m.safetensors")
    model = tiny("lingbot", **AS_VGGT)
    save_checkpoint(path, model, torch.float32)
    assert load_model("lingbot", path).sizes == model.sizes and load_model("", path).causal
    with pytest.raises(CheckpointError, match="weights of the backbone lingbot, but vggt was asked for"):
        load_model("vggt", path)
