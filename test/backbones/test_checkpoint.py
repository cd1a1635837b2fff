"""Weights files: strict, safe, and wrong ones explained in one line."""

import dataclasses
import pickle

import pytest
import torch

from come_ros.backbones.checkpoint import bundled_weights, load_vggt, save_checkpoint
from come_ros.backbones.vggt import VARIANTS, VGGT, VGGTSizes
from come_ros.errors import CheckpointError

SMALL = VGGTSizes(
    image_side=28, native_side=56, dim=24, encoder_depth=1, encoder_heads=3, depth=4, heads=3,
    taps=(0, 1, 2, 3), camera_depth=1, camera_heads=3, features=8, channels=(8, 8, 8, 8),
)  # fmt: skip


@pytest.fixture()
def small():
    torch.manual_seed(0)
    return VGGT(SMALL)


def test_our_files_carry_their_sizes_and_come_back_equal(tmp_path, small):
    path = str(tmp_path / "m.safetensors")
    save_checkpoint(path, small, torch.float32)
    loaded = load_vggt(path)
    assert loaded.sizes == SMALL
    for key, value in small.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]  # nothing half-written is left beside it


def test_a_file_without_sizes_must_be_the_published_model(tmp_path, small):
    path = str(tmp_path / "m.pt")
    torch.save({"model": small.state_dict()}, path)
    with pytest.raises(CheckpointError, match=r"m\.pt does not fit.*missing: .*of another shape: .*instead of"):
        load_vggt(path)


def test_missing_and_unexpected_keys_are_named_and_the_track_head_is_dropped(tmp_path, small, monkeypatch):
    monkeypatch.setitem(VARIANTS, "1b", SMALL)
    state = small.state_dict()
    path = str(tmp_path / "m.pt")
    torch.save({**state, "track_head.tracker.x": torch.zeros(1)}, path)
    load_vggt(path)
    torch.save({**{k: v for k, v in state.items() if k != "depth_head.norm.bias"}, "surplus": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"1 missing: depth_head\.norm\.bias\. 1 unexpected: surplus"):
        load_vggt(path)


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({"x": Evil()}))
    with pytest.raises(CheckpointError, match="cannot read the weights file"):
        load_vggt(str(path))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.safetensors", None, "does not exist"),
        ("cut.safetensors", b"\x10\x00\x00", "cannot read the weights file"),
        ("empty.pt", b"", "cannot read the weights file"),
        ("model.onnx", b"x", "unknown ending"),
    ],
)
def test_unusable_files_say_why(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_vggt(str(path))


def test_the_published_size_has_the_published_keys_and_shapes():
    """Counts of backbones.md 1.10: 1797 keys and 1,256,537,516 parameters with, 394 and 65,941,396 in the track head."""
    with torch.device("meta"):
        state = VGGT(VARIANTS["1b"]).state_dict()
    assert len(state) == 1797 - 394
    assert sum(v.numel() for v in state.values()) == 1_256_537_516 - 65_941_396
    for prefix, keys, numbers in (
        ("aggregator.", 1210, 304_372_736 + 302_364_672 + 302_364_672 + 10_240),
        ("aggregator.patch_embed.", 344, 304_372_736),
        ("aggregator.frame_blocks.", 432, 302_364_672),
        ("aggregator.global_blocks.", 432, 302_364_672),
        ("camera_head.", 69, 216_174_610),
        ("point_head.", 62, 32_654_628),
        ("depth_head.", 62, 32_654_562),
    ):
        part = {k: v for k, v in state.items() if k.startswith(prefix)}
        assert (len(part), sum(v.numel() for v in part.values())) == (keys, numbers), prefix
    for key, shape in {
        "aggregator.camera_token": (1, 2, 1, 1024),
        "aggregator.register_token": (1, 2, 4, 1024),
        "aggregator.patch_embed.pos_embed": (1, 1370, 1024),
        "aggregator.patch_embed.register_tokens": (1, 4, 1024),
        "aggregator.patch_embed.patch_embed.proj.weight": (1024, 3, 14, 14),
        "aggregator.frame_blocks.23.attn.q_norm.weight": (64,),
        "camera_head.poseLN_modulation.1.weight": (6144, 2048),
        "camera_head.trunk.3.ls1.gamma": (2048,),
        "camera_head.pose_branch.fc2.weight": (9, 1024),
        "depth_head.resize_layers.0.weight": (256, 256, 4, 4),
        "depth_head.resize_layers.3.weight": (1024, 1024, 3, 3),
        "depth_head.scratch.layer4_rn.weight": (256, 1024, 3, 3),
        "point_head.scratch.output_conv2.2.weight": (4, 32, 1, 1),
    }.items():
        assert tuple(state[key].shape) == shape, key


def test_the_bundled_model_loads_and_is_small():
    import os

    path = bundled_weights()
    assert os.path.getsize(path) <= 16 * 2**20
    model = load_vggt(path)
    side = {"image_side": model.sizes.image_side, "native_side": model.sizes.native_side}
    assert model.sizes == dataclasses.replace(VARIANTS["tiny"], **side)
    assert all(p.isfinite().all() for p in model.parameters())
