"""Weights files: strict, safe, and wrong ones explained in one line."""

import dataclasses
import pickle

import pytest
import torch
from models import TINY, tiny

from come_ros.accelerators import NoAccelerator
from come_ros.backbones import load_backbone, mapanything, pi3
from come_ros.backbones.checkpoint import MODELS, bundled_weights, load_model, load_vggt, save_checkpoint
from come_ros.backbones.mapanything import MapAnything
from come_ros.backbones.pi3 import Pi3
from come_ros.backbones.vggt import VARIANTS, VGGT, VGGTSizes
from come_ros.config import Config
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
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]  # nothing half-written is left next to it


def test_a_file_without_sizes_must_be_the_published_model(tmp_path, small):
    path = str(tmp_path / "m.pt")
    torch.save({"model": small.state_dict()}, path)
    with pytest.raises(CheckpointError, match=r"m\.pt does not fit.*missing: .*of another shape: .*instead of"):
        load_vggt(path)


def test_a_training_checkpoint_is_to_be_exported_first(tmp_path, small):
    path = str(tmp_path / "last.pt")
    torch.save({"model": small.state_dict(), "optimiser": {}, "step": 3}, path)
    with pytest.raises(CheckpointError, match=r"last\.pt is a training checkpoint: write its weights first.*--export"):
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


def size_of(state, *prefixes):
    return sum(v.numel() for k, v in state.items() if k.startswith(prefixes))


@pytest.mark.parametrize(("version", "total"), [("v1_1", 1_228_491_222), ("v1", 563_335_382)])
def test_the_published_sizes_of_mapanything(version, total):
    """Counts and shapes of backbones.md 3.1 and 3.6; the totals there leave the view_pos_table out, which is a buffer."""
    with torch.device("meta"):
        model = MapAnything(mapanything.VARIANTS[version])
    state = model.state_dict()
    assert sum(p.numel() for p in model.parameters()) == total
    latest = version == "v1_1"
    encoders = ("ray_dirs_", "depth_", "cam_rot_", "cam_trans_")
    for prefixes, millions in (
        (("encoder.", "fusion"), 683.1 if latest else 304.4),
        (("info_sharing.",), 453.4 if latest else 170.9),
        (("dense_head.",), 20.1 if latest else 19.0),
        (("pose_head.",), 6.1 if latest else 5.5),
        (("scale_head.",), 0.38 if latest else 0.23),
        (encoders, 65.4 if latest else 63.3),
    ):
        assert size_of(state, *prefixes) / 1e6 == pytest.approx(millions, abs=0.06), prefixes
    assert ("encoder.model.norm.weight" in state) != latest and ("info_sharing.proj_embed.weight" in state) != latest
    assert not any("mask_token" in k for k in state)
    c, trunk = (1536, 1536) if latest else (1024, 768)
    mlp = (
        {"w12.weight": (8192, c), "w3.weight": (c, 4096)}
        if latest
        else {"fc1.weight": (4096, c), "fc2.weight": (c, 4096)}
    )
    for key, shape in {
        "encoder.model.pos_embed": (1, 1370, c),
        **{f"encoder.model.blocks.23.mlp.{k}": v for k, v in mlp.items()},
        "scale_token": (c,),
        "info_sharing.view_pos_table": (1, trunk),
        f"info_sharing.self_attention_blocks.{15 if latest else 23}.attn.qkv.weight": (3 * trunk, trunk),
        "dense_head.0.input_process.0.0.0.weight": (96, c, 1, 1),
        "dense_head.0.input_process.3.0.0.weight": (768, trunk, 1, 1),
        "dense_head.0.input_process.1.0.1.weight": (192, 192, 2, 2),
        "dense_head.0.input_process.3.1.weight": (256, 768, 3, 3),
        "dense_head.0.scratch.refinenet1.resConfUnit1.conv2.weight": (256, 256, 3, 3),
        "dense_head.1.conv1.weight": (128, 256, 3, 3),
        "dense_head.1.conv2.2.weight": (6, 128, 1, 1),
        "depth_encoder.conv_in.weight": (588, 196, 3, 3),
        "ray_dirs_encoder.encoder.1.shortcut.weight": (1024, 768, 1, 1),
        "cam_rot_encoder.encoder.0.0.0.0.weight": (128, 4),
        "cam_trans_scale_encoder.encoder.1.weight": (c, 512),
        "pose_head.res_conv.1.res_conv3.weight": (784, 784, 1, 1),
        "scale_head.mlp.1.0.weight": (196, 196),
    }.items():
        assert tuple(state[key].shape) == shape, key
    assert ("info_sharing.self_attention_blocks.0.ls1.gamma" in state) == latest


def test_the_published_size_of_pi3():
    """Counts and shapes of backbones.md 4.1."""
    with torch.device("meta"):
        model = Pi3(pi3.VARIANTS["pi3"])
    state = model.state_dict()
    assert len(state) == 1210 and sum(p.numel() for p in model.parameters()) == 958_696_732
    for key, shape in {
        "register_token": (1, 1, 5, 1024),
        "image_mean": (1, 3, 1, 1),
        "encoder.register_tokens": (1, 4, 1024),
        "encoder.blocks.23.ls2.gamma": (1024,),
        "decoder.35.attn.k_norm.weight": (64,),
        "point_decoder.projects.weight": (1024, 2048),
        "camera_decoder.blocks.4.mlp.fc2.weight": (1024, 4096),
        "camera_decoder.linear_out.weight": (512, 1024),
        "point_head.proj.weight": (588, 1024),
        "conf_head.proj.weight": (196, 1024),
        "camera_head.fc_rot.weight": (9, 512),
    }.items():
        assert tuple(state[key].shape) == shape, key


def test_every_alias_of_the_dense_head_is_accepted(tmp_path, shared_data, monkeypatch):
    """A published MapAnything file keeps any one name of tensors that have several: the recorded aliases, one at a time."""
    model = tiny("mapanything")
    monkeypatch.setitem(mapanything.VARIANTS, "v1_1", TINY["mapanything"])
    state = model.state_dict()
    fixture = torch.load(shared_data / "parity" / "mapanything_seed0.pt", weights_only=True)
    aliases = fixture["config"]["v1_1"]["aliases"]
    assert len(aliases) == 76
    for names in ({}, *_rounds(aliases)):
        renamed = {names.get(key, key): value for key, value in state.items()}
        assert len(set(renamed) - set(state)) == len(names)
        path = str(tmp_path / "model.pt")
        torch.save(renamed, path)
        loaded = load_model("mapanything", path).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())
    everything = {**state, **{alias: state[key] for alias, key in aliases.items()}}  # as torch itself saves it
    torch.save(everything, tmp_path / "all.pt")
    assert load_model("mapanything", str(tmp_path / "all.pt")).state_dict().keys() == state.keys()


def _rounds(aliases):
    """Maps key -> alias that together use every alias."""
    left = dict(aliases)
    while left:
        names = {key: alias for alias, key in left.items()}
        yield names
        left = {alias: key for alias, key in left.items() if alias not in names.values()}


@pytest.mark.parametrize("backbone", sorted(MODELS))
def test_files_of_every_backbone_come_back_equal_and_are_told_apart(tmp_path, backbone):
    model = tiny(backbone)
    path = str(tmp_path / "m.safetensors")
    save_checkpoint(path, model, torch.float32)
    loaded = load_model(backbone, path)
    assert loaded.sizes == model.sizes
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    torch.save(model.state_dict(), tmp_path / "published.pt")  # without our sizes, as others write it
    for other in set(MODELS) - {backbone}:
        for file in (path, str(tmp_path / "published.pt")):
            if backbone in MODELS[other].same_keys:  # only the user knows, see test_lingbot.py
                continue
            with pytest.raises(CheckpointError, match=f"weights of the backbone {backbone}, but {other} was asked for"):
                load_model(other, file)
    for kind in MODELS.values():
        holds_another = (
            backbone == "lingbot" and kind.name == "vggt"
        )  # which is told by the scale token, looked for first
        assert (kind.landmark in model.state_dict()) == (kind.name == backbone or holds_another)


@pytest.mark.parametrize("backbone", sorted(set(MODELS) - {"vggt", "lingbot"}))
def test_without_weights_it_says_where_to_get_them(backbone):
    with pytest.raises(CheckpointError, match=r"weights to a file \(.*Hugging Face\)"):
        load_backbone(Config(backbone=backbone, device="cpu"))


def test_the_bundled_model_loads_and_is_small():
    import os

    path = bundled_weights()
    assert os.path.getsize(path) <= 16 * 2**20
    model = load_vggt(path)
    chosen = {name: getattr(model.sizes, name) for name in ("image_side", "native_side", "by_place")}
    assert model.sizes in [dataclasses.replace(sizes, **chosen) for sizes in VARIANTS.values()]
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_predicted_centre_is_the_middle_of_the_image_in_the_packages_pixels(tmp_path):
    """(W - 1) / 2, where tiny learnt it; published weights say W / 2, as their authors do."""
    x = torch.rand(1, 1, 3, 56, 70)
    for centre, want in ((0.0, (35.0, 28.0)), (-0.5, (34.5, 27.5))):
        model = tiny("vggt", centre=centre)
        with torch.inference_mode():
            k = model(x, NoAccelerator(), ("camera",))[0]["intrinsics"][0, 0]
        assert (float(k[0, 2]), float(k[1, 2])) == want
        path = str(tmp_path / "w.safetensors")
        save_checkpoint(path, model)
        assert load_vggt(path).sizes.centre == centre
    assert load_vggt(bundled_weights()).sizes.centre == -0.5, "the file is older than the field"
    assert VGGT.published_sizes({}).centre == 0.0
