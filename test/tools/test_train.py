"""Training: targets agree with the geometry, losses are zero at the truth, a short run learns and can be resumed."""

import argparse
import dataclasses
import itertools
import json
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from come_ros.backbones import lingbot, mapanything
from come_ros.backbones.cameras import rays_of
from come_ros.backbones.checkpoint import bundled_weights, load_model, load_vggt, save_checkpoint
from come_ros.backbones.lingbot import LingBot, LingBotSizes
from come_ros.backbones.mapanything import MapAnything, MapAnythingSizes
from come_ros.backbones.vggt import VARIANTS, VGGT, VGGTSizes, decode_pose
from come_ros.errors import CheckpointError, ConfigError
from come_ros.evaluation import rooms
from come_ros.tools import cli, train
from come_ros.training import losses, recipes, room_windows, tiny
from come_ros.training.loop import denormals_flushed
from come_ros.training.recipes import MapAnythingRecipe, recipe_for
from come_ros.training.room_windows import WindowStream

SMALL = VGGTSizes(
    image_side=112, native_side=112, dim=24, encoder_depth=1, encoder_heads=3, depth=4, heads=3,
    taps=(0, 1, 2, 3), camera_depth=1, camera_heads=3, features=8, channels=(8, 8, 8, 8),
)  # fmt: skip
SMALL_LINGBOT = LingBotSizes(**dataclasses.asdict(SMALL), **lingbot.AS_VGGT)
SMALL_MAPANYTHING = MapAnythingSizes(
    image_side=112, native_side=112, dim=24, encoder_depth=1, encoder_heads=3, registers=4, encoder_norm=True, gated=False,
    trunk_dim=24, depth=8, heads=3, taps=(3, 5), features=8, channels=(8, 8, 8, 8), pose_dim=8, scale_dim=8, map_dims=(8, 8),
    vector_dims=(8, 8),
)  # fmt: skip


@pytest.fixture(scope="module")
def batch():
    stream = WindowStream(seed=3, side=112)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room_windows, "STAGED_SHARE", 0.0)  # furnished rooms: from near by, points are hard to tell apart
        for _ in range(3):
            stream.render()
    drawn = [stream.window(3, 0.5) for _ in range(8)]  # some of them mirrored, zoomed, spoilt
    names = ("images", "depth", "camera_from_first", "intrinsics")
    return {n: torch.from_numpy(np.stack(x)) for n, x in zip(names, zip(*drawn, strict=True), strict=True)}


@pytest.mark.slow
def test_targets_are_one_consistent_geometry(batch):
    want = losses.targets(batch)
    assert torch.allclose(want["points"].norm(dim=-1).mean(dim=(1, 2, 3)), torch.ones(8), atol=1e-5)
    pose, k = decode_pose(want["encoding"], (84, 112))
    assert torch.allclose(pose[:, 0], torch.eye(4).expand(8, 4, 4), atol=1e-6)
    # the encoding alone must take every camera's points into the first camera's frame
    camera = torch.einsum("bsij,bshwj->bshwi", pose[..., :3, :3], want["points"]) + pose[:, :, None, None, :3, 3]
    assert torch.allclose(camera[..., 2], want["depth"], atol=1e-4)
    assert torch.allclose(k[:, 0, 0, 0], batch["intrinsics"][:, 0, 0], rtol=1e-4)


@pytest.mark.slow
def test_points_of_one_frame_look_the_same_in_another(batch):
    """Mirroring, permutation and poses together: colours at corresponding pixels agree far better than at random ones."""
    want, k = losses.targets(batch), batch["intrinsics"][:, None, None, None]
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
    want = losses.targets(batch)
    assert losses.camera_loss(want["encoding"].expand(4, -1, -1, -1), want["encoding"]) == 0
    zero = torch.zeros(2, 1, 4, 4)
    assert losses.dense_loss(zero, torch.ones_like(zero), losses.spatial_gradient(zero)) == 0
    error = torch.tensor([[0.0, 1.0], [0.0, 1.0]])[None, None]
    assert losses.spatial_gradient(error).tolist() == [[[[1.0, 0.0], [1.0, 0.0]]]]
    # the best confidence for an error e is 0.2 / e: Kendall & Gal's balance
    c = torch.linspace(1, 50, 5000)
    terms = torch.stack([losses.dense_loss(torch.tensor(0.05), x, torch.tensor(0.0)) for x in c])
    assert c[terms.argmin()].item() == pytest.approx(0.2 / 0.05, rel=0.01)


def test_matching_loss_prefers_true_correspondence(batch):
    """Descriptors that are the points' own positions match where they should; shuffled ones do not."""
    want = losses.targets(batch)
    points = losses.patch_centres(want["points"], 14)  # (B, S, n, 3), all in the first camera's frame
    waves = torch.cat([(points * f).sin() for f in (1, 2, 4, 8)] + [(points * f).cos() for f in (1, 2, 4, 8)], dim=-1)
    target, valid = losses.correspondence(want, batch, 14)
    assert valid.float().mean() > 0.3
    right = losses.matching_loss(waves, target, valid)
    wrong = losses.matching_loss(waves[:, :, torch.randperm(48)], target, valid)
    assert right < 1.2 < 0.5 * wrong


def test_attention_loss_reads_the_first_head_over_all_tokens():
    """2 frames of 1 special token and 2 patches; patches of frame 1 should look at patches 1 and 0 of frame 0."""
    keys = torch.eye(6)[None, None].repeat(1, 2, 1, 1) * 40
    queries = torch.zeros(1, 2, 6, 6)
    queries[0, 0, 4, 2] = queries[0, 0, 5, 1] = 1.0  # token 4 = frame 1 patch 0 looks at token 2 = frame 0 patch 1
    target, valid = torch.tensor([[[1, 0]]]), torch.ones(1, 1, 2, dtype=torch.bool)
    assert losses.attention_loss([(queries, keys)], 2, 1, target, valid) < 1e-5
    assert losses.attention_loss([(queries.flip(1), keys)], 2, 1, target, valid) == pytest.approx(np.log(6), rel=1e-4)
    assert losses.attention_loss([(queries.flip(1), keys)], 2, 1, target, ~valid) == 0


class TrueHeads:
    """Stands for a MapAnything whose heads say the truth of a batch, in a unit that is `unit` of the targets'."""

    def __init__(self, batch, unit=1.0, metres=None):
        self.want = losses.targets(batch)
        self.unit, self.k = unit, batch["intrinsics"]
        self.log_scale = (self.want["scale"] if metres is None else metres).log() - np.log(unit)
        self.pose = torch.linalg.inv(batch["camera_from_first"])  # world from camera, metres

    def head_levels(self, trunk):
        return [
            torch.arange(self.pose.shape[1])[None, :, None, None].expand(len(self.k), -1, 1, 1)
        ]  # which frame it is

    def run_pose_head(self, levels):
        translation = self.pose[..., :3, 3] / self.want["scale"][:, None, None] * self.unit
        return translation, losses.quaternion_from_rotation(self.pose[..., :3, :3])

    def run_dense_head(self, levels, grid, size, check, chunk):
        rows = levels[0][0, :, 0, 0]
        points = self.want["camera"][:, rows, ::2, ::2] * self.unit
        raw = torch.zeros(*points.shape[:4], 6)
        raw[..., :3], raw[..., 3], raw[..., 4] = 3 * points, points.norm(dim=-1).log(), -20  # rays of any length
        return raw.movedim(-1, 2)

    def run_scale_head(self, trunk):
        return self.log_scale


@pytest.mark.slow
def test_factored_losses_vanish_at_the_truth_in_any_unit(batch):
    recipe = MapAnythingRecipe()

    def terms(heads):
        found = recipe.head_losses(heads, SimpleNamespace(grid=None), heads.want, batch["depth"].shape[-2:])
        assert set(found) == set(recipe.weights)
        return {name: float(value) for name, value in found.items()}

    for unit in (1.0, 0.25, 7.0):
        found = terms(TrueHeads(batch, unit))
        for name in ("camera", "depth", "points", "rays", "scale"):
            assert found[name] == pytest.approx(0, abs=2e-4), (name, unit)
    assert terms(TrueHeads(batch, metres=2 * losses.targets(batch)["scale"]))["scale"] == pytest.approx(
        np.log(2), rel=1e-3
    )
    turned = TrueHeads(batch)
    turned.pose = turned.pose.clone()
    turned.pose[:, 1:, :3, :3] = torch.eye(3)  # the trivial baseline of rotation
    drawn = [terms(turned) for _ in range(8)]  # of the frames, which the lot may leave out
    assert drawn[0]["camera"] > 0.01 and max(t["points"] for t in drawn) > 0.01 and max(t["rays"] for t in drawn) < 1e-3
    rays = rays_of(batch["intrinsics"][0], (84, 112))
    truth = turned.want["camera"][0, 0]
    assert torch.allclose(truth / truth[..., 2:], rays, atol=1e-4)  # and the rays are those that known intrinsics give


def test_what_is_known_is_drawn_at_random_and_is_true(batch):
    torch.manual_seed(0)
    recipe, shares = MapAnythingRecipe(), []
    for _ in range(40):
        known = recipe.known(batch)
        if known is None:
            continue
        rays, poses = (x.isfinite().flatten(2).all(2) for x in (known.intrinsics, known.world_from_camera))
        depth = known.depth.isfinite()
        assert rays[depth.flatten(2).any(2)].all()  # depth says nothing without the camera
        assert torch.equal(known.depth[depth], batch["depth"][depth])
        back = known.world_from_camera[poses] @ batch["camera_from_first"][poses]
        assert torch.allclose(back, torch.eye(4).expand_as(back), atol=1e-5)
        shares.append([*(x.float().mean() for x in (rays, depth.flatten(2).any(2), poses)), depth.float().mean()])
    rays, depth, poses, pixels = np.mean(shares, axis=0)
    assert 0.15 < depth < 0.35 and 0.15 < poses < 0.35 and depth < rays < 0.5
    assert pixels < 0.7 * depth  # half of the depth maps are sparse


def test_scores_say_what_the_model_was_told_and_how_far_off_it_is(monkeypatch):
    class Oracle(torch.nn.Module):
        """Twice the true depth; focal length and poses as it is told."""

        native_side, metric = 56, True

        def __init__(self):
            super().__init__()
            self.weight, self.windows = torch.nn.Parameter(torch.zeros(())), []

        def forward(self, images, accelerator, heads, known):
            s = rooms.split_windows("validation", 2, 56, 42)[len(self.windows)]
            self.windows.append((s, known))
            out = {"depth": 2 * torch.from_numpy(s.depth)[None], "intrinsics": known.intrinsics}
            return out | {"world_from_camera": known.world_from_camera}, None

    monkeypatch.setattr(rooms, "mean_depth_map", lambda width, height: np.ones((height, width)))
    model = Oracle()
    scores = rooms.score(model, "validation", 2, ("intrinsics", "depth", "poses"))
    assert scores["scale_error"] == pytest.approx(np.log(2), abs=1e-3) and scores["abs_rel"] == pytest.approx(
        0, abs=1e-3
    )
    assert scores["focal_error"] < 1e-3 and scores["rotation_deg"] < 0.1 < scores["identity rotation_deg"]
    for s, known in model.windows:
        some = known.depth[0].isfinite().numpy()
        assert 0.07 < some.mean() < 0.13 and np.array_equal(known.depth[0].numpy()[some], s.depth[some])
    told = Oracle()
    told.forward = lambda images, accelerator, heads, known: (
        {
            "depth": torch.ones(1, 4, 42, 56),
            "intrinsics": known.intrinsics,
            "world_from_camera": torch.eye(4).expand(1, 4, 4, 4),
        },
        told.windows.append(known),
    )
    assert "scale_error" in rooms.score(told, "validation", 1, ("intrinsics",))
    assert not told.windows[0].depth.isfinite().any() and not told.windows[0].world_from_camera.isfinite().any()


def test_both_tiny_models_are_of_one_size():
    with torch.device("meta"):
        models = [tiny.make_model(name, "tiny", 112) for name in ("vggt", "mapanything")]
    vggt, other = (sum(p.numel() for p in m.parameters()) for m in models)
    assert abs(other / vggt - 1) < 0.02
    assert len(models[0].trunk_blocks()) == len(models[1].trunk_blocks())
    with pytest.raises(ConfigError, match=r"'huge'.* v1, tiny"):
        tiny.make_model("mapanything", "huge")
    with pytest.raises(ConfigError, match=r"'pi3'.*vggt, lingbot, mapanything"):
        recipe_for("pi3")


def test_an_encoder_is_taken_from_another_backbone(tmp_path):
    vggt, other = VGGT(SMALL), MapAnything(SMALL_MAPANYTHING)
    tiny.initialise(vggt, recipe_for("vggt"), 1)
    tiny.initialise(other, recipe_for("mapanything"), 2)
    path = str(tmp_path / "vggt.safetensors")
    save_checkpoint(path, vggt, torch.float32)
    images = torch.rand(1, 2, 3, 112, 112)

    def features(model):
        tokens = model.encoder_input(images)
        for block in model.encoder_blocks():
            tokens = tokens._replace(x=block(tokens.x.flatten(0, 1)).unflatten(0, (1, 2)))
        norm = recipe_for(model.name).encoder(model).norm
        return norm(tokens.x[:, :, tokens.special :])

    assert not torch.allclose(features(other), features(vggt), atol=0.1)
    tiny.begin_encoder(path, other)
    assert torch.allclose(features(other), features(vggt), atol=1e-5)
    tiny.begin_encoder(path, VGGT(SMALL))  # its mask token is in no other backbone
    with pytest.raises(CheckpointError, match="of another shape"):
        tiny.begin_encoder(path, MapAnything(mapanything.VARIANTS["tiny"]))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vggt", "lingbot", "mapanything"])
def test_short_run_learns_resumes_and_exports(tmp_path, monkeypatch, batch, backbone):
    few = {name: value[:2] for name, value in batch.items()}
    monkeypatch.setattr(train, "loader", lambda *arguments: itertools.repeat(few))
    monkeypatch.setitem(VARIANTS, "small", SMALL)
    monkeypatch.setitem(lingbot.VARIANTS, "small", SMALL_LINGBOT)
    monkeypatch.setitem(mapanything.VARIANTS, "small", SMALL_MAPANYTHING)
    monkeypatch.setattr(tiny, "WARM_UP_STEPS", 4)
    merge = 0.0 if backbone == "lingbot" else 0.4
    keys = ("delta", "constant delta", "mean map delta", "rotation_deg", "identity rotation_deg", "direction_deg")
    monkeypatch.setattr(recipes, "score", lambda model, split, count, **more: dict.fromkeys(keys, 0.0))
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    out = tmp_path / "run"
    first = f"-o {out} --backbone {backbone} --variant small --merge {merge} --threads 1".split()
    assert train.run(parser.parse_args([*first, "--minutes", "0.01"])) == 0
    _, state = tiny.restore(str(out / "last.pt"))
    side = SMALL.native_side
    for table in (VARIANTS, lingbot.VARIANTS, mapanything.VARIANTS):  # what was begun at one size goes on at that size
        monkeypatch.setitem(
            table, "small", dataclasses.replace(table["small"], image_side=side + 28, native_side=side + 28)
        )
    assert state["step"] >= 1 and (out / "curve.png").stat().st_size > 1000
    steps = state["step"] + 24
    assert train.run(parser.parse_args([*first, "--steps", str(steps), "--resume"])) == 0
    model, resumed = tiny.restore(str(out / "last.pt"))
    assert resumed["step"] == steps and len(resumed["log"]) > len(state["log"])
    assert resumed["log"][-1]["depth"] < state["log"][0]["depth"]  # one batch, over and over: it must be learnt
    target = tmp_path / "small.safetensors"
    assert train.run(parser.parse_args(["-o", str(out), "--export", str(target)])) == 0
    loaded = load_model(backbone, str(target)).state_dict()
    assert all(torch.allclose(loaded[key], value, atol=1e-3) for key, value in model.state_dict().items())
    json.dumps(resumed["log"])
    with pytest.raises(CheckpointError, match=f"is of {backbone} small, not {backbone} tiny"):
        train.run(parser.parse_args(["-o", str(out), "--backbone", backbone, "--resume", "--steps", "1"]))


@pytest.mark.slow
def test_a_signal_ends_a_step_midway_and_keeps_those_before(tmp_path, monkeypatch, batch, capsys):
    few = {name: value[:1] for name, value in batch.items()}
    drawn = []

    def loader(*arguments):
        while True:
            drawn.append(few)
            if len(drawn) == 3:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)  # a batch that is long in the making
                raise AssertionError("the signal must have ended it")
            yield few

    monkeypatch.setattr(train, "loader", loader)
    monkeypatch.setitem(VARIANTS, "small", SMALL)
    monkeypatch.setattr(recipes, "score", lambda *arguments, **more: pytest.fail("no scores after a signal"))
    out = tmp_path / "run"
    command = ["train", "-o", str(out), "--variant", "small", "--threads", "1", "--steps", "4"]
    assert cli.main(command) == 128 + signal.SIGINT
    told = capsys.readouterr().err
    assert f"step 2 is in {out}: continue with --resume" in told and "Traceback" not in told
    _, state = tiny.restore(str(out / "last.pt"))
    assert state["step"] == 2 and not (out / "curve.png").exists()
    monkeypatch.setattr(train, "loader", lambda *arguments: itertools.repeat(few))
    keys = ("delta", "constant delta", "mean map delta", "rotation_deg", "identity rotation_deg", "direction_deg")
    monkeypatch.setattr(recipes, "score", lambda model, split, count, **more: dict.fromkeys(keys, 0.0))
    assert cli.main([*command, "--resume"]) == 0
    assert tiny.restore(str(out / "last.pt"))[1]["step"] == 4
    drawn[:] = [few, few]  # before the first step
    monkeypatch.setattr(train, "loader", loader)
    assert (
        cli.main(["train", "-o", str(tmp_path / "none"), "--variant", "small", "--steps", "4"]) == 128 + signal.SIGINT
    )
    assert "before there was any result" in capsys.readouterr().err and not list((tmp_path / "none").iterdir())


def test_a_missing_checkpoint_is_one_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="no training checkpoint"):
        tiny.restore(str(tmp_path / "last.pt"))
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    with pytest.raises(CheckpointError, match="no training checkpoint"):
        train.run(parser.parse_args(["-o", str(tmp_path), "--resume", "--steps", "1"]))


def test_start_takes_weights_of_another_image_size(tmp_path, monkeypatch):
    monkeypatch.setitem(VARIANTS, "small", SMALL)
    earlier = VGGT(SMALL)
    tiny.initialise(earlier, recipe_for("vggt"), 1)
    probe = tiny.make_probe(earlier)
    path = str(tmp_path / "last.pt")
    torch.save({"variant": "small", "model": earlier.state_dict(), "probe": probe.state_dict()}, path)
    larger = VGGT(dataclasses.replace(SMALL, image_side=168, native_side=168))
    tiny.begin_with(path, larger, tiny.make_probe(larger))
    for name, value in larger.state_dict().items():
        if not name.endswith("pos_embed"):
            assert torch.equal(value, earlier.state_dict()[name]), name
    table = larger.aggregator.patch_embed.pos_embed[0, 1:].view(12, 12, -1)
    stored = earlier.aggregator.patch_embed.pos_embed[0, 1:].view(8, 8, -1)
    assert torch.allclose(table.mean((0, 1)), stored.mean((0, 1)), atol=0.05)  # resampled, not shuffled or new
    assert torch.corrcoef(torch.stack((table[::3, ::3].flatten(), stored[::2, ::2].flatten())))[0, 1] > 0.7
    # a checkpoint that was trained at 168 px is one for 168 px
    torch.save({"variant": "small", "model": larger.state_dict(), "probe": probe.state_dict()}, path)
    model, _ = tiny.restore(path)
    assert model.native_side == 168


def test_a_checkpoint_of_larger_patches_comes_back(tmp_path, monkeypatch):
    """A stream that begins with a model with a stem, whose patches have 16 px."""
    stem = dataclasses.replace(SMALL, image_side=64, native_side=64, patch=16, stem=True)
    sizes = LingBotSizes(**dataclasses.asdict(stem), **lingbot.AS_VGGT)
    monkeypatch.setitem(lingbot.VARIANTS, "small", sizes)
    path, earlier = str(tmp_path / "last.pt"), LingBot(sizes)
    torch.save({"backbone": "lingbot", "variant": "small", "model": earlier.state_dict(), "probe": {}}, path)
    model, _ = tiny.restore(path)
    assert model.sizes == sizes
    weights = str(tmp_path / "w.safetensors")
    save_checkpoint(weights, VGGT(stem), torch.float32)
    tiny.begin_with(weights, model, tiny.make_probe(model))
    loaded = load_model("vggt", weights).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_a_stream_is_trained_dense(tmp_path):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    with pytest.raises(ConfigError, match=r"--merge is 0\.5, but lingbot is trained dense"):
        train.run(parser.parse_args(["-o", str(tmp_path), "--backbone", "lingbot", "--merge", "0.5", "--steps", "1"]))


def test_a_stream_begins_with_a_model_of_windows_and_its_encoder_stays(tmp_path, batch):
    path = str(tmp_path / "small.safetensors")
    earlier, model = VGGT(SMALL), LingBot(SMALL_LINGBOT)
    recipe = recipe_for("lingbot")
    tiny.initialise(earlier, recipe_for("vggt"), 1)
    save_checkpoint(path, earlier, torch.float32)
    probe = tiny.make_probe(model)
    tiny.begin_with(path, model, probe)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(torch.equal(value, earlier.state_dict()[name]) for name, value in before.items())
    recipe.prepare(model)
    optimiser = tiny.make_optimiser(model, probe)
    terms = tiny.gradients(model, recipe, probe, batch, 0.0)
    tiny.descend(model, optimiser, 1e-3)
    assert terms.keys() == {"camera", "depth", "attention"} and all(np.isfinite(list(terms.values())))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (".patch_embed." in name), name


def test_the_scale_of_a_stream_is_that_of_its_first_frames(batch):
    """A causal model cannot know what later frames will see."""
    want = losses.targets(batch, 2)
    assert torch.allclose(want["points"][:, :2].norm(dim=-1).mean(dim=(1, 2, 3)), torch.ones(8), atol=1e-5)
    whole = losses.targets(batch)
    ratio = want["depth"] / whole["depth"]
    assert torch.allclose(ratio, ratio[:, :1, :1, :1].expand_as(ratio)) and not torch.allclose(ratio, ratio[:1])
    assert torch.allclose(want["encoding"][..., :3] / ratio[:, :, 0, :1], whole["encoding"][..., :3], atol=1e-5)


def test_denormals_are_back_after_training():
    with pytest.raises(KeyError), denormals_flushed():
        assert np.float32(1e-40) * np.float32(1) == 0
        raise KeyError
    assert np.float32(1e-40) * np.float32(1) > 0


def test_the_weights_before_are_those_of_start_or_those_that_ship(tmp_path):
    class Recipe:
        def score(self, model, split, count):
            return {"dim": model.sizes.dim, "split": split}

    def before(start, sizes):
        run = SimpleNamespace(model=VGGT(sizes))
        return train._before(SimpleNamespace(start=start, backbone="vggt"), Recipe(), run)

    small = tmp_path / "small.safetensors"
    save_checkpoint(str(small), VGGT(SMALL))
    name, scores = before(str(small), SMALL)
    assert name.endswith("small.safetensors") and scores == {"dim": SMALL.dim, "split": "validation"}
    assert before("", load_vggt(bundled_weights()).sizes)[0] == "the bundled model"
    assert before("", SMALL) is None and before(str(tmp_path / "none.safetensors"), SMALL) is None
