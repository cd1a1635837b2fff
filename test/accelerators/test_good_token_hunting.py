"""Good Token Hunting: which frames, which layers, which keys; and together with Co-Me."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny
from PIL import Image

from come_ros.accelerators import CoMe, GoodTokenHunting, NoAccelerator, Tokens, ToMe, make_accelerator
from come_ros.accelerators.base import Accelerator
from come_ros.accelerators.combined import combine
from come_ros.accelerators.confidence import ConfidencePredictor
from come_ros.accelerators.good_token_hunting import (
    LayerPlan,
    diverse_frames,
    read_layer_plan,
)
from come_ros.companions import LAYER_PLAN, made_for
from come_ros.config import Config
from come_ros.errors import CheckpointError, ConfigError
from come_ros.tokens import Layer

GRID, SPECIAL, FRAMES = (5, 4), 5, 4
T = SPECIAL + GRID[0] * GRID[1]


@pytest.fixture(scope="module")
def model():
    return tiny("vggt", std=0.15, image_side=84, native_side=84)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, FRAMES, 3, GRID[0] * 14, GRID[1] * 14, generator=torch.Generator().manual_seed(1))


def run(model, x, accelerator):
    with torch.inference_mode():
        return model(x, accelerator, ("camera", "depth"))[0]


# ------------------------------------------------------------------------------------------------------------- frames
def slow_farthest(descriptors, k):
    f = F.normalize(descriptors.double(), dim=-1)
    chosen = [0]
    while len(chosen) < k:
        rest = [i for i in range(len(f)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: min(float(1 - f[i] @ f[j]) for j in chosen)))
    return sorted(chosen)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.data(), st.integers(0, 2**31))
def test_frames_are_chosen_farthest_first(frames, data, seed):
    k = data.draw(st.integers(1, frames))
    descriptors = torch.randn(2, frames, 6, generator=torch.Generator().manual_seed(seed))
    assert diverse_frames(descriptors, k).tolist() == [slow_farthest(d, k) for d in descriptors]


def test_frames_that_look_alike_are_taken_once():
    places = torch.eye(3)[[0, 0, 1, 1, 1, 2]][None]
    assert diverse_frames(places, 3).tolist() == [[0, 2, 5]]
    assert diverse_frames(torch.ones(1, 4, 3), 3).tolist() == [
        [0, 1, 2]
    ]  # nothing to choose by: no frame twice all the same


@pytest.mark.parametrize(
    ("options", "frames", "read"),
    [({"ratio": 0.5}, 8, 4), ({"ratio": 0.9}, 8, 1), ({"ratio": 1.0}, 8, 1), ({"ratio": 0.7}, 10, 3), ({"frames": 25}, 8, 8)],
)  # fmt: skip
def test_the_ratio_says_how_many_frames_are_read(options, frames, read):
    assert GoodTokenHunting(LayerPlan(0, 0), **options).how_many(frames) == read


# ------------------------------------------------------------------------------------------------------------- layers
# read off the paper's figure
VGGT_ENTROPY = [
    .99, .99, .94, .93, .94, .94, .93, .94, .96, .90, .92, .73, .86, .66, .73, .74, .88, .92, .98, .97, .99, .91, 1.0, .99
]  # fmt: skip


def test_the_layer_plan_follows_the_entropy():
    assert LayerPlan.from_entropy(VGGT_ENTROPY) == LayerPlan(2, 11)  # by hand the authors took 2 and 9
    assert LayerPlan.published(24) == LayerPlan(2, 9)
    assert LayerPlan.from_entropy([0.5] * 4) == LayerPlan(0, 0)
    assert LayerPlan.from_entropy([1.0] * 8) == LayerPlan(2, 4)  # never all of them
    assert LayerPlan.from_entropy([0.95, 0.5, 0.95, 1.0]) == LayerPlan(
        0, 1
    )  # one way: no layer after a sharp one is thinned


def test_every_layer_reads_what_the_plan_says(model, images):
    seen = {}

    class Watch(GoodTokenHunting):
        def attend(self, q, k, v, plan, layer):
            seen[len(seen)] = (layer.part, q.shape[:3:2], k.shape[2])
            return super().attend(q, k, v, plan, layer)

    run(model, images, Watch(LayerPlan(1, 3), ratio=0.5))
    trunk = [seen[i] for i in range(2, 10)]  # behind the encoder: frame and global in turn
    grid = SPECIAL + 3 * 2  # of 5 x 4 patches every second
    frame, across = ("frame", (2 * FRAMES, T), T), ("global", (2, FRAMES * T))
    want = [frame, frame, frame, (*across, 2 * grid), frame, (*across, 2 * grid), frame, (*across, 2 * T)]
    assert trunk == want


def test_it_is_dense_attention_with_the_other_keys_masked(model, images):
    class Masked(GoodTokenHunting):
        def reach(self, tokens, plan, layer):
            return Accelerator.reach(self, tokens, plan, layer)

        def attend(self, q, k, v, plan, layer):
            kind = self.kind(layer) if layer.part == "global" else "none"
            if kind == "none":
                return super().attend(q, k, v, plan, layer)
            allowed = torch.zeros(len(q), 1, FRAMES * T, FRAMES * T, dtype=torch.bool)
            patch = torch.arange(T - SPECIAL)
            on_grid = (patch // GRID[1] % 2 == 0) & (patch % GRID[1] % 2 == 0)
            inside = torch.cat((torch.ones(SPECIAL, dtype=torch.bool), on_grid | (kind == "full")))
            for b, frames in enumerate(plan.frames.tolist()):
                for f in range(FRAMES):
                    if kind == "local":
                        allowed[b, :, f * T : (f + 1) * T, f * T : (f + 1) * T] = True
                    elif f in frames:
                        allowed[b, :, :, f * T : (f + 1) * T] = inside
            return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)

    made = [kind(LayerPlan(1, 3), ratio=0.5) for kind in (GoodTokenHunting, Masked)]
    got, want = (run(model, images, a) for a in made)
    for key in got:
        torch.testing.assert_close(got[key], want[key], rtol=1e-4, atol=1e-5)


def test_all_frames_in_full_layers_change_no_bit(model, images):
    plain = run(model, images, NoAccelerator())
    hunted = run(model, images, GoodTokenHunting(LayerPlan(0, 0), frames=25))
    assert all(torch.equal(plain[key], hunted[key]) for key in plain)


def test_frames_may_be_told_apart_by_something_else(model, images):
    seen = []

    def brightness(tokens: Tokens):
        seen.append(tuple(tokens.images.shape))
        return torch.stack((tokens.images.mean((2, 3, 4)), torch.ones(tokens.images.shape[:2])), dim=-1)

    run(model, images, GoodTokenHunting(LayerPlan(0, 0), descriptor=brightness))
    assert seen == [tuple(images.shape)]


# ------------------------------------------------------------------------------------------------------- calibration
@pytest.fixture
def weights(tmp_path):
    from come_ros.backbones.checkpoint import save_checkpoint

    path = str(tmp_path / "small.safetensors")
    save_checkpoint(path, tiny("vggt", image_side=84, native_side=84))
    return path


def test_calibration_is_written_next_to_the_weights_and_read_again(weights, tmp_path, capsys):
    from come_ros.tools import cli

    picture, folder = tmp_path / "entropy.png", tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        noise = np.random.default_rng(i).integers(0, 256, (56, 84, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    options = ["--source", str(folder), "--windows", "2", "--frames", "3", "--picture", str(picture)]
    assert cli.main(["calibrate", "--weights", weights, *options]) == 0
    with open(LAYER_PLAN.next_to(weights)) as file:
        content = json.load(file)
    assert made_for(weights).items() <= content.items()
    assert len(content["entropy"]) == 4 and all(0 < h <= 1 for h in content["entropy"])
    assert picture.stat().st_size > 1000
    told = capsys.readouterr()
    assert "| 3 |" in told.out
    plan = read_layer_plan(weights, 4)
    assert plan != LayerPlan.published(4) and "against the dense model: depth changes by" in told.err
    assert plan == LayerPlan.from_entropy(content["entropy"]) == LayerPlan(content["local"], content["grid"])
    # neither that file nor the installation's is touched unasked
    assert cli.main(["calibrate", "--weights", weights, *options]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main(["calibrate", *options]) == 1
    assert "name a file with -o" in capsys.readouterr().err


def test_entropy_is_one_where_all_keys_are_alike_and_zero_where_one_takes_all():
    from come_ros.tools.calibrate import EntropyWatch

    q, alike = torch.ones(1, 3, 40, 8), torch.ones(1, 3, 40, 8)
    assert EntropyWatch(0).look(q, alike) == pytest.approx(1)
    one = torch.zeros(1, 3, 40, 8)
    one[:, :, 7] = 100
    assert EntropyWatch(0).look(q, one) == pytest.approx(0, abs=1e-6)


def test_a_layer_plan_that_does_not_fit_is_refused_or_said(weights, tmp_path, caplog):
    assert read_layer_plan(weights, 24) == LayerPlan(2, 9)  # none there: the published one
    with pytest.raises(CheckpointError, match=r"nowhere\.json.*come_ros calibrate"):
        read_layer_plan(weights, 4, str(tmp_path / "nowhere.json"))
    content = {"local": 0, "grid": 1, "entropy": [0.9] * 4, **made_for(weights)}

    def write(**changed):
        with open(LAYER_PLAN.next_to(weights), "w") as file:
            json.dump({**content, **changed}, file)

    write()
    assert read_layer_plan(weights, 4) == LayerPlan(0, 1) and not caplog.records
    with pytest.raises(CheckpointError, match=r"plans 4 global layers.*this model has 24"):
        read_layer_plan(weights, 24)
    write(grid=9)
    with pytest.raises(CheckpointError, match="grid 9"):
        read_layer_plan(weights, 4)
    write(weights_fingerprint="of others")
    assert read_layer_plan(weights, 4) == LayerPlan.published(4)
    assert "was made for other weights" in caplog.text and "the published layer plan is used" in caplog.text


# ------------------------------------------------------------------------------------------------------ combinations
def come(**options):
    torch.manual_seed(3)
    return CoMe(ConfidencePredictor(48, 8).eval(), 0, group=(2, 2), **options)


@pytest.mark.parametrize("mode", ["fused", "per_layer"])
def test_with_all_keys_come_and_hunting_is_come(model, images, mode):
    alone = run(model, images, come(mode=mode))
    both = run(model, images, combine([GoodTokenHunting(LayerPlan(0, 0), frames=9), come(mode=mode)]))
    for key in alone:
        torch.testing.assert_close(alone[key], both[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["fused", "per_layer"])
def test_combined_keys_are_those_of_restored_patches_on_the_grid_and_weighted_ones_elsewhere(model, images, mode):
    """An oracle that projects all keys and copies them by hand."""
    hunter, reducer = GoodTokenHunting(LayerPlan(0, 2), ratio=0.5), come(mode=mode)
    combined = combine([reducer, hunter])

    class Oracle(type(combined)):
        def reach(self, tokens, plan, layer):
            return Accelerator.reach(self, tokens, plan, layer)

        def attend(self, q, k, v, plan, layer):
            if layer.part != "global":
                return self.reducer.attend(q, k, v, plan.tokens if plan else None, layer)
            own, weight = plan.tokens, torch.cat((torch.ones(2, FRAMES, SPECIAL), plan.tokens.weight), 2)
            chosen_k, chosen_v, bias = [], [], []
            for b in range(len(q)):
                ks, vs, w = [], [], []
                for f in plan.keys.frames[b].tolist():
                    kf, vf = (t[b].unflatten(1, (FRAMES, -1))[:, f] for t in (k, v))
                    if self.hunter.kind(layer) == "grid":
                        patches = [own.rev[b * FRAMES + f, r * GRID[1] + c] for r in (0, 2, 4) for c in (0, 2)]
                        pick = torch.tensor([*range(SPECIAL), *(SPECIAL + int(p) for p in patches)])
                        w.append(torch.ones(len(pick)))
                    else:
                        pick = torch.arange(kf.shape[1])
                        w.append(weight[b, f])
                    ks.append(kf[:, pick])
                    vs.append(vf[:, pick])
                chosen_k.append(torch.cat(ks, 1))
                chosen_v.append(torch.cat(vs, 1))
                bias.append(torch.cat(w).log())
            k, v, bias = torch.stack(chosen_k), torch.stack(chosen_v), torch.stack(bias)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, None, None])

    got, want = run(model, images, combined), run(model, images, Oracle(reducer, hunter))
    for key in got:
        torch.testing.assert_close(got[key], want[key], rtol=1e-4, atol=1e-5)


def test_steps_that_collide_are_refused_in_words():
    hunting, tome = GoodTokenHunting(LayerPlan(0, 0)), ToMe(["global"])
    for parts, said in (
        ([come(), tome], "come and tome both change which patches exist"),
        ([hunting, tome], "good_token_hunting and tome both change whose keys"),
        ([come(), NoAccelerator()], "only one of come, pace can be combined"),
        ([come(), hunting, hunting], "good_token_hunting and good_token_hunting both"),
    ):
        with pytest.raises(ConfigError, match=said):
            combine(parts)


def test_the_name_in_the_configuration_may_hold_two(model, weights):
    for name in ("come+good_token_hunting", ["come", "good_token_hunting"]):
        config = Config().replace(**{"accelerator.name": name})
        assert config.accelerator.name == "come+good_token_hunting"
    with pytest.raises(ConfigError, match=r"come\+nothing.*must be one of"):
        Config().replace(**{"accelerator.name": "come+nothing"})
    config = Config().replace(**{"accelerator.name": "good_token_hunting", "accelerator.frames": 3})
    made = make_accelerator(config, model.shape, weights)
    assert isinstance(made, GoodTokenHunting) and made.frames == 3 and made.configured(config) is made
    assert made.configured(config.replace(**{"accelerator.stride": 3})).stride == 3
    assert Layer("global", 0).part == "global"


def test_the_published_plan_is_the_authors_and_the_rest_says_what_it_is(caplog, tmp_path):
    """They run VGGT (24 global layers) and Pi3 (18) with layers 0 and 1 local and 2 to 8 thinned; shorter models they have none for."""
    assert LayerPlan.published(24) == LayerPlan.published(18) == LayerPlan(2, 9)
    assert LayerPlan.published(12) == LayerPlan(1, 4)
    (tmp_path / "w.safetensors").write_bytes(b"x")
    with caplog.at_level("INFO"):
        read_layer_plan(str(tmp_path / "w.safetensors"), 18)
        read_layer_plan(str(tmp_path / "w.safetensors"), 12)
    first, second = (record.getMessage() for record in caplog.records)
    assert ": the published layer plan, 2 local and 7 thinned of 18" in first
    assert ": a layer plan scaled from the published one, 1 local and 3 thinned of 12" in second
    whole, half = (GoodTokenHunting(LayerPlan(*p)).about() for p in ((2, 9), (0, 0)))
    assert "only frames are chosen" in half and "only frames" not in whole and "MegaLoc" in whole
