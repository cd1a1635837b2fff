"""Training: targets agree with the geometry, losses are zero at the truth, a short run learns and can be resumed."""

import json

import numpy as np
import pytest
import torch

from come_ros.backbones.checkpoint import load_vggt
from come_ros.backbones.vggt import VARIANTS, VGGT, VGGTSizes, decode_pose
from come_ros.datasets.windows import WindowStream
from come_ros.tools import train

SMALL = VGGTSizes(
    image_side=112, native_side=112, dim=24, encoder_depth=1, encoder_heads=3, depth=4, heads=3,
    taps=(0, 1, 2, 3), camera_depth=1, camera_heads=3, features=8, channels=(8, 8, 8, 8),
)  # fmt: skip


@pytest.fixture(scope="module")
def batch():
    stream = WindowStream(seed=3, side=112)
    for _ in range(3):
        stream.render()
    windows = [stream.window(3, 0.5) for _ in range(8)]  # some of them mirrored, zoomed, spoilt
    names = ("images", "depth", "camera_from_first", "intrinsics")
    return {n: torch.from_numpy(np.stack(x)) for n, x in zip(names, zip(*windows, strict=True), strict=True)}


def test_targets_are_one_consistent_geometry(batch):
    want = train.targets(batch)
    assert torch.allclose(want["points"].norm(dim=-1).mean(dim=(1, 2, 3)), torch.ones(8), atol=1e-5)
    pose, k = decode_pose(want["encoding"], (84, 112))
    assert torch.allclose(pose[:, 0], torch.eye(4).expand(8, 4, 4), atol=1e-6)
    # the encoding alone must take every camera's points into the first camera's frame
    camera = torch.einsum("bsij,bshwj->bshwi", pose[..., :3, :3], want["points"]) + pose[:, :, None, None, :3, 3]
    assert torch.allclose(camera[..., 2], want["depth"], atol=1e-4)
    assert torch.allclose(k[:, 0, 0, 0], batch["intrinsics"][:, 0, 0], rtol=1e-4)


def test_points_of_one_frame_look_the_same_in_another(batch):
    """Mirroring, permutation and poses together: colours at corresponding pixels agree far better than at random ones."""
    want, k = train.targets(batch), batch["intrinsics"][:, None, None, None]
    p = want["points"][:, 1:]
    u = (p[..., 0] / p[..., 2] * k[..., 0, 0] + k[..., 0, 2]).round().long()
    v = (p[..., 1] / p[..., 2] * k[..., 1, 1] + k[..., 1, 2]).round().long()
    inside = (p[..., 2] > 0) & (u >= 0) & (u < 112) & (v >= 0) & (v < 84)
    first = batch["images"][:, 0].float()
    b = torch.arange(8)[:, None, None, None].expand_as(u)
    there = first[b, :, v.clamp(0, 83), u.clamp(0, 111)]  # (B, S-1, H, W, 3)
    here = batch["images"][:, 1:].float().movedim(2, -1)
    same = (there - here).abs().mean(-1)[inside].median()
    other = (there.flip(0) - here).abs().mean(-1)[inside].median()
    assert inside.float().mean() > 0.4 and same < 0.5 * other


def test_losses_vanish_at_the_truth(batch):
    want = train.targets(batch)
    assert train.camera_loss(want["encoding"].expand(4, -1, -1, -1), want["encoding"]) == 0
    zero = torch.zeros(2, 1, 4, 4)
    assert train.dense_loss(zero, torch.ones_like(zero), train.spatial_gradient(zero)) == 0
    error = torch.tensor([[0.0, 1.0], [0.0, 1.0]])[None, None]
    assert train.spatial_gradient(error).tolist() == [[[[1.0, 0.0], [1.0, 0.0]]]]
    # the best confidence for an error e is 0.2 / e: Kendall & Gal's balance
    c = torch.linspace(1, 50, 5000)
    losses = torch.stack([train.dense_loss(torch.tensor(0.05), x, torch.tensor(0.0)) for x in c])
    assert c[losses.argmin()].item() == pytest.approx(0.2 / 0.05, rel=0.01)


def test_matching_loss_prefers_true_correspondence(batch):
    """Descriptors that are the points' own positions match where they should; shuffled ones do not."""
    want = train.targets(batch)
    points = train.patch_centres(want["points"], 14)  # (B, S, n, 3), all in the first camera's frame
    waves = torch.cat([(points * f).sin() for f in (1, 2, 4, 8)] + [(points * f).cos() for f in (1, 2, 4, 8)], dim=-1)
    target, valid = train.correspondence(want, batch, 14)
    assert valid.float().mean() > 0.3
    right = train.matching_loss(waves, target, valid)
    wrong = train.matching_loss(waves[:, :, torch.randperm(48)], target, valid)
    assert right < 1.2 < 0.5 * wrong


def test_attention_loss_reads_the_first_head_over_all_tokens():
    """2 frames of 1 special token and 2 patches; patches of frame 1 should look at patches 1 and 0 of frame 0."""
    keys = torch.eye(6)[None, None].repeat(1, 2, 1, 1) * 40
    queries = torch.zeros(1, 2, 6, 6)
    queries[0, 0, 4, 2] = queries[0, 0, 5, 1] = 1.0  # token 4 = frame 1 patch 0 looks at token 2 = frame 0 patch 1
    target, valid = torch.tensor([[[1, 0]]]), torch.ones(1, 1, 2, dtype=torch.bool)
    assert train.attention_loss([(queries, keys)], 2, 1, target, valid) < 1e-5
    assert train.attention_loss([(queries.flip(1), keys)], 2, 1, target, valid) == pytest.approx(np.log(6), rel=1e-4)
    assert train.attention_loss([(queries.flip(1), keys)], 2, 1, target, ~valid) == 0


def test_short_run_learns_resumes_and_exports(tmp_path, monkeypatch, batch):
    import itertools

    monkeypatch.setattr(train, "loader", lambda *arguments: itertools.repeat(batch))
    monkeypatch.setitem(VARIANTS, "small", SMALL)
    monkeypatch.setattr(train, "WARM_UP_STEPS", 10)
    keys = ("delta", "constant delta", "mean map delta", "rotation_deg", "identity rotation_deg", "direction_deg")
    monkeypatch.setattr(train, "score", lambda model, split, count: dict.fromkeys(keys, 0.0))
    import argparse

    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    out = tmp_path / "run"
    first = ["-o", str(out), "--variant", "small", "--merge", "0.4", "--minutes", "0.06", "--threads", "1"]
    assert train.run(parser.parse_args(first)) == 0
    _, state = train.restore(str(out / "last.pt"))
    assert state["step"] >= 1 and (out / "curve.png").stat().st_size > 1000
    assert train.run(parser.parse_args([*first[:-3], "0.12", "--threads", "1", "--resume"])) == 0
    model, resumed = train.restore(str(out / "last.pt"))
    assert resumed["step"] > state["step"] and len(resumed["log"]) > len(state["log"])
    assert resumed["log"][-1]["depth"] < state["log"][0]["depth"]  # one batch, over and over: it must be learnt
    target = tmp_path / "small.safetensors"
    assert train.run(parser.parse_args(["-o", str(out), "--export", str(target)])) == 0
    loaded = load_vggt(str(target))
    key = "aggregator.camera_token"
    assert torch.allclose(loaded.state_dict()[key], model.state_dict()[key], atol=1e-3)
    json.dumps(resumed["log"])


def test_a_missing_checkpoint_is_one_clear_error(tmp_path):
    from come_ros.errors import CheckpointError

    with pytest.raises(CheckpointError, match="no training checkpoint"):
        train.restore(str(tmp_path / "last.pt"))


def test_start_takes_weights_of_another_image_size(tmp_path, monkeypatch):
    import dataclasses

    monkeypatch.setitem(VARIANTS, "small", SMALL)
    earlier = VGGT(SMALL)
    train.initialise(earlier, 1)
    probe = train.make_probe(earlier)
    path = str(tmp_path / "last.pt")
    torch.save({"variant": "small", "model": earlier.state_dict(), "probe": probe.state_dict()}, path)
    larger = VGGT(dataclasses.replace(SMALL, image_side=168, native_side=168))
    train.begin_with(path, larger, train.make_probe(larger))
    for name, value in larger.state_dict().items():
        if not name.endswith("pos_embed"):
            assert torch.equal(value, earlier.state_dict()[name]), name
    table = larger.aggregator.patch_embed.pos_embed[0, 1:].view(12, 12, -1)
    stored = earlier.aggregator.patch_embed.pos_embed[0, 1:].view(8, 8, -1)
    assert torch.allclose(table.mean((0, 1)), stored.mean((0, 1)), atol=0.05)  # resampled, not shuffled or new
    assert torch.corrcoef(torch.stack((table[::3, ::3].flatten(), stored[::2, ::2].flatten())))[0, 1] > 0.7
    # a checkpoint that was trained at 168 px is one for 168 px
    torch.save({"variant": "small", "model": larger.state_dict(), "probe": probe.state_dict()}, path)
    model, _ = train.restore(path)
    assert model.native_side == 168
