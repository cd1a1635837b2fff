"""The Co-Me plug-in on a small random model."""

import threading

import numpy as np
import pytest
import torch
from models import tiny

from come_ros.accelerators import CoMe, NoAccelerator
from come_ros.accelerators.come import group_contrast, make_plan
from come_ros.accelerators.confidence import ConfidencePredictor, load_predictor, save_predictor
from come_ros.config import Config
from come_ros.errors import CheckpointError


@pytest.fixture(scope="module")
def model():
    return tiny("vggt", std=0.15, image_side=84, native_side=84, encoder_depth=3, depth=3, taps=(0, 1, 1, 2))


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(1)
    return ConfidencePredictor(48, 8).eval()


def images(seed=1, scenes=1, frames=3, h=7 * 14, w=6 * 14):
    return torch.rand(scenes, frames, 3, h, w, generator=torch.Generator().manual_seed(seed))


def run(model, x, accelerator):
    with torch.inference_mode():
        return model(x, accelerator, ("camera", "depth", "points"))


@pytest.mark.parametrize("mode", ["fused", "per_layer"])
def test_nothing_to_merge_changes_no_bit(model, predictor, mode):
    plain, _ = run(model, images(), NoAccelerator())
    for accelerator in (
        CoMe(predictor, 0, ratio=0.0, mode=mode),
        CoMe(predictor, 0, ratio=0.1, group=(3, 3), mode=mode),  # floor(0.1 * 4) groups
        CoMe(predictor, 0, ratio=1.0, group=(8, 8), mode=mode),  # no whole group
    ):
        out, trunk = run(model, images(), accelerator)
        assert all(torch.equal(plain[key], out[key]) for key in plain)
        assert accelerator.kept_ratio(trunk.plan) == 1.0 and accelerator.merged(trunk.plan, 3, trunk.grid) is None


@pytest.mark.parametrize("mode", ["fused", "per_layer"])
@pytest.mark.parametrize("budget", ["frame", "window"])
def test_blocks_run_short_and_outputs_are_whole(model, predictor, mode, budget):
    lengths = []

    class Watch(CoMe):
        def attend(self, q, k, v, plan, layer):
            lengths.append((layer.part, layer.index, q.shape[2]))
            return super().attend(q, k, v, plan, layer)

    accelerator = Watch(predictor, 0, ratio=1.0, group=(3, 3), mode=mode, budget=budget)
    out, trunk = run(model, images(scenes=2), accelerator)
    short = 42 - 4 * 8  # 7 x 6 patches hold four groups of nine
    assert {n for part, i, n in lengths if part == "encoder" and i == 0} == {5 + 42}
    assert {n for part, i, n in lengths if part == "encoder" and i > 0} == {5 + short}
    assert {n for part, _, n in lengths if part == "frame"} == {5 + short}
    assert {n for part, _, n in lengths if part == "global"} == {3 * (5 + short)}
    assert out["depth"].shape == (2, 3, 98, 84) and all(v.isfinite().all() for v in out.values())
    mask = accelerator.merged(trunk.plan, 3, trunk.grid)
    assert mask.shape == (6, 7, 6) and mask[:, :6].all() and not mask[:, 6].any()
    assert accelerator.kept_ratio(trunk.plan) == pytest.approx(short / 42)


@pytest.mark.parametrize("mode", ["fused", "per_layer"])
def test_merging_equal_tokens_is_exact_where_only_their_number_counts(model, predictor, mode):
    """An image of one colour: the patches of a group differ by their position only; the bias must make the result nearer."""
    x = images() * 0 + 0.5
    dense, _ = run(model, x, NoAccelerator())

    def error(bias):
        out, _ = run(model, x, CoMe(predictor, 0, ratio=1.0, mode=mode, bias=bias))
        return (out["depth"].log() - dense["depth"].log()).abs().mean()

    assert error(True) < error(False)


@pytest.mark.slow
def test_the_window_budget_equals_the_frame_budget_where_they_choose_alike(model):
    class Alike(torch.nn.Module):  # the same map for every frame
        def forward(self, tokens):
            b, s, h, w, _ = tokens.shape
            return torch.arange(h * w).view(h, w).float().expand(b, s, h, w)

    a, _ = run(model, images(), CoMe(Alike(), 0, budget="frame"))
    b, _ = run(model, images(), CoMe(Alike(), 0, budget="window"))
    for key in a:
        torch.testing.assert_close(a[key], b[key])


@pytest.mark.slow
def test_two_windows_in_two_threads_never_mix(model, predictor):
    accelerator = CoMe(predictor, 0, ratio=0.5)
    windows = [images(seed, frames=2 + seed % 3) for seed in range(6)]
    alone = [run(model, w, accelerator)[0]["depth"] for w in windows]
    together = [None] * len(windows)

    def work(i):
        for _ in range(3):
            together[i] = run(model, windows[i], accelerator)[0]["depth"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(windows))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_predictor_files_keep_their_sizes_and_block(tmp_path, model, predictor):
    path = str(tmp_path / "p.safetensors")
    save_predictor(path, ConfidencePredictor(48, 12, scope="pooled", activation="none"), 2)
    loaded, block = load_predictor(path, model.shape)
    assert (loaded.dim, loaded.scope, loaded.activation, block) == (12, "pooled", "none", 2)
    # a released one holds nothing but its tensors
    torch.save(predictor.state_dict(), tmp_path / "released.pt")
    loaded, block = load_predictor(str(tmp_path / "released.pt"), model.shape)
    assert (loaded.dim, block) == (8, 1)
    tokens = torch.rand(1, 2, 6, 6, 48)
    assert torch.equal(loaded(tokens), predictor(tokens))
    save_predictor(path, ConfidencePredictor(32, 8), 0)
    with pytest.raises(CheckpointError, match="width 32"):
        load_predictor(path, model.shape)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="is not a confidence predictor"):
        load_predictor(str(tmp_path / "other.pt"), model.shape)


@pytest.mark.parametrize("scope", ["window", "frame", "pooled"])
def test_every_scope_ranks_all_patches(scope):
    torch.manual_seed(0)
    p = ConfidencePredictor(48, 8, scope=scope, registers=2)
    tokens = torch.rand(2, 3, 6, 7, 48)
    got = p(tokens)
    assert got.shape == (2, 3, 6, 7) and (got > 1).all()
    other = tokens.clone()
    other[:, 2] += 1
    alone = torch.equal(p(other)[:, 0], got[:, 0])
    assert alone == (scope == "frame")


def test_ranking_loss_falls_when_the_order_is_right():
    from come_ros.training.predictor import mse_loss, ranking_loss

    torch.manual_seed(0)
    wanted = torch.rand(2, 200)
    right, wrong = ranking_loss(5 * wanted, wanted), ranking_loss(-5 * wanted, wanted)
    assert right < 0.6931 < wrong
    assert float(mse_loss(3 * wanted + 7, wanted)) == pytest.approx(0, abs=1e-6)
    assert np.isclose(float(ranking_loss(torch.zeros(2, 200), wanted)), np.log(2))


def test_the_edge_vote_spares_groups_that_hold_structure_and_keeps_their_number():
    """Six groups; the two least sure ones hold a pole each, which the vote saves at the cost of two that are plain."""
    confidence = torch.arange(6.0).repeat_interleave(4).view(1, 1, 6, 2, 2).permute(0, 1, 3, 2, 4).reshape(1, 1, 2, 12)
    contrast = torch.tensor([[0.9, 0.8, 0.1, 0.05, 0.2, 0.3]])
    plain = make_plan(confidence, (2, 2), 2)
    assert plain.merged.tolist() == [[True, True, False, False, False, False]]
    voted = make_plan(confidence, (2, 2), 2, contrast=contrast, edge_weight=2.0)
    assert voted.merged.tolist() == [[False, False, True, True, False, False]]
    assert voted.source.shape == plain.source.shape
    unmoved = make_plan(confidence, (2, 2), 2, contrast=contrast, edge_weight=0.0)
    assert torch.equal(unmoved.merged, plain.merged) and torch.equal(unmoved.source, plain.source)
    window = make_plan(
        confidence.expand(1, 2, -1, -1), (2, 2), 2, "window", contrast=contrast.expand(2, -1), edge_weight=2.0
    )
    assert window.merged.sum() == 4


def test_contrast_of_groups_is_one_less_the_mean_cosine_to_their_mean():
    patches = torch.randn(1, 2, 7 * 6, 16, generator=torch.Generator().manual_seed(0))
    patches[0, 0, [0, 1, 6, 7]] = torch.randn(16, generator=torch.Generator().manual_seed(1))  # all alike
    found = group_contrast(patches, (7, 6), (2, 2))
    assert found.shape == (2, 9) and found[0, 0].abs() < 1e-6 and found[0, 0] == found.min()
    four = torch.nn.functional.normalize(patches[0, 1, [14, 15, 20, 21]], dim=-1)
    cosine = (four @ torch.nn.functional.normalize(four.mean(0), dim=0)).mean()
    assert found[1, 4] == pytest.approx(float(1 - cosine), abs=1e-6)
    scaled = group_contrast(patches * torch.rand(1, 2, 42, 1), (7, 6), (2, 2))
    assert torch.allclose(scaled, found, atol=1e-6)  # lengths say nothing


def test_the_edge_weight_is_a_dynamic_parameter(predictor):
    from come_ros.config import Config

    accelerator = CoMe(predictor, 0, edge_weight=0.5)
    config = Config().replace(**{"accelerator.name": "come", "accelerator.edge_weight": 0.5})
    assert accelerator.configured(config) is accelerator
    other = accelerator.configured(config.replace(**{"accelerator.edge_weight": 2.0}))
    assert type(other) is CoMe and other.edge_weight == 2.0 and other.predictor is predictor
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="edge_weight is"):
            CoMe(predictor, 0, edge_weight=wrong)


def test_each_published_rule_is_there_by_its_name(model, predictor):
    """v1: floor(p M) groups of 1x4 in each frame; v2: groups strictly below the quantile p of the whole window."""
    x = images(frames=4, h=8 * 14, w=8 * 14)
    v1, v2 = (CoMe(predictor, 0, ratio=0.4, group=(2, 2), rule=rule) for rule in ("v1", "v2"))
    _, trunk = run(model, x, v1)
    assert trunk.plan.group == (1, 4) and (trunk.plan.merged.sum(1) == int(0.4 * 16)).all()
    _, trunk = run(model, x, v2)
    plan = trunk.plan
    means = torch.nn.functional.avg_pool2d(plan.confidence[:, None], 2).flatten(1).numpy()
    assert plan.group == (2, 2)
    np.testing.assert_array_equal(plan.merged.numpy(), means < np.quantile(means, 0.4))
    assert len(set(plan.merged.sum(1).tolist())) > 1, "frames differ"
    assert v2.window_bound(3) and not v1.window_bound(3)


def test_a_token_of_v1_sits_on_a_whole_patch(model, predictor):
    seen = {}

    class Watch(CoMe):
        def compress(self, tokens, plan, site):
            out = super().compress(tokens, plan, site)
            seen[self.rule] = out[0].positions
            return out

    for rule in ("static", "v1"):
        run(model, images(), Watch(predictor, 0, ratio=0.5, group=(1, 4), rule=rule))
    assert (seen["static"] % 1 == 0.5).any() and (seen["v1"] % 1 == 0).all()
    assert torch.equal(seen["static"].floor(), seen["v1"])


def test_a_rule_is_a_parameter_like_any_other(predictor):
    config = Config.from_flat({"accelerator.name": "come", "accelerator.rule": "v2", "accelerator.group": "2x2"})
    static = CoMe(predictor, 0, ratio=0.5, group=(2, 2))
    v2 = static.configured(config)
    assert (v2.rule, v2.budget) == ("v2", "quantile") and v2.configured(config) is v2
    v1 = v2.configured(config.replace(**{"accelerator.rule": "v1"}))
    assert (v1.rule, v1.budget, v1.group) == ("v1", "frame", (1, 4)) and "first release" in v1.about()
    back = v1.configured(config.replace(**{"accelerator.rule": "static"}))
    assert (back.rule, back.budget, back.group) == ("static", "frame", (2, 2))
    with pytest.raises(ValueError, match="rule 'v3'"):
        CoMe(predictor, 0, rule="v3")
