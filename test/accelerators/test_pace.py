"""PaceVGGT: who is kept, merged and left out, how patches are rebuilt, and files of its networks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from come_ros.accelerators import Pace, Tokens
from come_ros.accelerators.pace import allotment, lattice
from come_ros.accelerators.pace_networks import Restorer, TokenScorer, load_networks, make_networks, save_networks
from come_ros.backbones.vggt import VGGT, VGGTSizes
from come_ros.errors import CheckpointError
from come_ros.tokens import Layer

SIZES = VGGTSizes(
    image_side=84, native_side=84, dim=48, encoder_depth=2, encoder_heads=3, depth=2, heads=3,
    taps=(0, 0, 1, 1), camera_depth=1, camera_heads=3, features=16, channels=(16, 16, 16, 16),
)  # fmt: skip


class FirstChannel(torch.nn.Module):
    """Scores are told by the first channel."""

    def forward(self, tokens):
        return tokens[..., 0]


def window(frames=3, grid=(4, 5), special=2, scenes=2, seed=0):
    x = torch.randn(scenes, frames, special + grid[0] * grid[1], 8, generator=torch.Generator().manual_seed(seed))
    y, c = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    positions = torch.cat((torch.zeros(special, 2, dtype=torch.long), torch.stack((y, c), -1).view(-1, 2) + 1))
    return Tokens(x, positions[None, None], special, grid)


def slow_allotment(weight, total, most):
    """One whole share after another to who is most below its due, found by halving the due."""
    low, high = 0.0, 1e12
    for _ in range(300):
        due = (low + high) / 2
        if sum(min(most, due * w) for w in weight) < total:
            low = due
        else:
            high = due
    return [min(most, high * w) for w in weight]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9), st.integers(0, 30), st.floats(0, 1))
def test_a_budget_is_shared_in_proportion_and_nothing_is_lost(weight, most, share):
    total = int(share * most * len(weight))
    got = allotment(torch.tensor([weight], dtype=torch.float64), total, most)[0].tolist()
    assert sum(got) == total and min(got) >= 0 and max(got) <= most
    exact = slow_allotment(weight, total, most)
    assert all(abs(g - e) < 1 + 1e-3 for g, e in zip(got, exact, strict=True))


def test_frames_that_score_nothing_share_alike():
    assert allotment(torch.zeros(1, 4, dtype=torch.float64), 8, 5).tolist() == [[2, 2, 2, 2]]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.floats(0.05, 1), st.floats(0, 1), st.integers(0, 999)
)
def test_the_best_are_kept_the_next_best_merged_into_their_likes(frames, h, w, ratio, budget, seed):
    tokens = window(frames, (h, w), seed=seed)
    p = h * w
    short, plan = Pace(FirstChannel(), None, ratio=ratio, merge_budget=budget).compress(tokens, None, "backbone_in")
    keep = max(1, p - int(ratio * p + 1e-9))
    if keep == p:
        assert plan is None and short is tokens
        return
    patches = tokens.x[:, :, 2:]
    assert torch.equal(short.x[:, :, :2], tokens.x[:, :, :2]) and short.x.shape[2] == 2 + keep
    total = min(int(budget * frames * p + 1e-9), frames * (p - keep))
    merged = plan.merged.unflatten(0, (2, frames))
    assert merged.sum((1, 2)).tolist() == [total, total]
    for b in range(2):
        for s in range(frames):
            score, r = patches[b, s, :, 0], b * frames + s
            kept = plan.merging.origin[r].tolist()
            assert kept == sorted(score.argsort(descending=True)[:keep].tolist())
            joins = plan.merged[r].nonzero()[:, 0].tolist()
            rest = [i for i in score.argsort(descending=True).tolist() if i not in kept]
            assert sorted(rest[: len(joins)]) == joins
            unit = F.normalize(patches[b, s], dim=-1)
            for rank, i in enumerate(kept):
                members = [j for j in joins if int((unit[j] @ unit[kept].T).argmax()) == rank]
                weight = score[[i, *members]].sigmoid()
                mean = (patches[b, s, [i, *members]] * weight[:, None]).sum(0) / weight.sum()
                torch.testing.assert_close(short.x[b, s, 2 + rank], mean, rtol=1e-4, atol=1e-5)
                assert (short.positions[b, s, 2 + rank] - 1).tolist() == [i // w, i % w]


def test_every_patch_gets_something_back_and_kept_ones_their_own():
    tokens = window()._replace(layer=Layer("frame", 0))
    torch.manual_seed(0)
    for restorer in (None, Restorer(8, 8, 8, heads=2).eval()):
        pace = Pace(FirstChannel(), restorer, ratio=0.6)
        short, plan = pace.compress(tokens, None, "backbone_in")
        whole, _ = pace.restore(short, plan, "tap")
        assert whole.x.shape == tokens.x.shape and whole.x.isfinite().all()
        for r in range(6):
            kept = plan.merging.origin[r]
            assert torch.equal(whole.x.flatten(0, 1)[r, 2 + kept], short.x.flatten(0, 1)[r, 2:])


def test_untrained_restoration_leans_on_what_the_encoder_saw_alike():
    """Two kinds of patches, one of each kept: the others must get what became of theirs."""
    torch.manual_seed(0)
    kinds = torch.randn(2, 8)
    which = torch.tensor([0, 1, 0, 0, 1, 1, 0, 1])
    restorer = Restorer(8, 4, 64, heads=1)
    lookup = restorer.lookup(kinds[which][None], torch.tensor([[0, 1]]), (2, 4))
    values = torch.tensor([[[1.0, 0, 0, 0], [0, 0, 0, 1.0]]])
    back = restorer(values, lookup, "global", 0)[0]
    assert torch.equal(back.argmax(1), 3 * which)


def test_gradients_reach_scorer_and_restorer():
    torch.manual_seed(0)
    pace = Pace(TokenScorer(8, 8), Restorer(8, 8, 8, heads=2), ratio=0.5)
    tokens = window()._replace(layer=Layer("frame", 0))
    short, plan = pace.compress(tokens, None, "backbone_in")
    pace.restore(short, plan, "tap")[0].x.square().sum().backward()
    for network in (pace.scorer, pace.restorer.q, pace.restorer.k, pace.restorer.corrections["frame"]):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("grid", [(9, 12), (6, 11), (37, 28)])
def test_a_choice_by_lattice_leaves_no_hole(grid):
    """However many are kept: no patch is much farther from a kept one than on the best possible grid."""
    y, x = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    for keep in (0.25, 0.4, 0.5, 0.75):
        n = int(keep * len(y))
        kept = lattice(grid, torch.device("cpu")).argsort(descending=True)[:n].numpy()
        inside = np.hypot(y[:, None] - y[kept], x[:, None] - x[kept]).min(1)
        assert inside.max() <= 2.3 * (1 / keep) ** 0.5 and len(set(kept.tolist())) == n


def test_spread_moves_the_choice_from_the_score_to_the_lattice():
    tokens = window(grid=(6, 8), scenes=1, frames=1)
    even = lattice((6, 8), torch.device("cpu")).argsort(descending=True)[:24].sort().values

    def kept(spread):
        return (
            Pace(FirstChannel(), None, ratio=0.5, spread=spread)
            .compress(tokens, None, "backbone_in")[1]
            .merging.origin[0]
        )

    best = tokens.x[0, 0, 2:, 0].argsort(descending=True)[:24].sort().values
    assert torch.equal(kept(0.0), best) and torch.equal(kept(1e4), even)
    assert not torch.equal(kept(1.0), best) and not torch.equal(kept(1.0), even)


def test_files_keep_the_networks(tmp_path):
    torch.manual_seed(0)
    model = VGGT(SIZES)
    path = str(tmp_path / "pace.safetensors")
    scorer, restorer = make_networks(model.shape, 16, spread=0.5)
    save_networks(path, scorer, restorer)
    loaded, loaded_restorer = load_networks(path, model.shape)
    x = torch.randn(1, 2, 3, 4, 48)
    torch.testing.assert_close(loaded(x), scorer(x), rtol=1e-2, atol=1e-2)  # stored in half precision
    assert loaded_restorer.heads == restorer.heads and float(loaded.spread) == 0.5
    with pytest.raises(
        CheckpointError,
        match=r"width 48.*trunk of width 48 with \d frame.*, but this model's are 32 and 32 with \d.*train-pace",
    ):
        load_networks(
            path, VGGT(VGGTSizes(**{**vars(SIZES), "dim": 32, "heads": 2, "encoder_heads": 2, "camera_heads": 2})).shape
        )
    with pytest.raises(CheckpointError, match=r"width 48 with \d frame blocks, but this model's are 48 and 48 with 1"):
        load_networks(path, VGGT(VGGTSizes(**{**vars(SIZES), "depth": 1, "taps": (0, 0, 0, 0)})).shape)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no scorer and restorer"):
        load_networks(str(tmp_path / "other.pt"), model.shape)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"ratio is 2"):
        Pace(FirstChannel(), None, ratio=2)
    with pytest.raises(ValueError, match=r"merge_budget -1"):
        Pace(FirstChannel(), None, merge_budget=-1)
