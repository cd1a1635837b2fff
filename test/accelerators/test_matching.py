"""Matching and weighted means, and ToMe on them."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from come_ros.accelerators import ToMe
from come_ros.accelerators.matching import (
    Merging,
    _sum_index,
    _sum_segments,
    best_match,
    bipartite,
    merge_into,
    merged_mean,
    unmerged,
)
from come_ros.accelerators.tome import SizePlan, cells
from come_ros.tokens import Layer, Tokens


@pytest.mark.parametrize("case", ["a", "b", "c", "d"])
def test_tome_agrees_with_the_reference(shared_data, case):
    c = torch.load(shared_data / "parity" / "tome_seed7.pt", weights_only=True)[case]
    merging = bipartite(c["metric"], c["r"], protected=int(c["class_token"]))
    merged, size = merged_mean(c["x"], torch.ones(c["x"].shape[:2]), merging)
    assert torch.equal(size[..., None], c["size"])
    for got, want in ((merged, c["merged"]), (restored(merged, merging), c["unmerged"])):
        assert (got - want).abs().max() <= 1e-6 * want.abs().max()


def restored(x, merging):
    return x.gather(1, merging.place[..., None].expand(-1, -1, x.shape[2]))


def slow_bipartite(metric, r):
    """Token by token, from the paper's text, for one row without protected tokens: groups of tokens."""
    t = len(metric)
    m = torch.nn.functional.normalize(metric, dim=-1)
    pairs = []
    for a in range(0, t, 2):
        if t > 1:
            similar = [float(m[a] @ m[b]) for b in range(1, t, 2)]
            pairs.append((max(similar), a, 1 + 2 * similar.index(max(similar))))
    groups = {i: {i} for i in range(t)}
    for _, a, b in sorted(pairs, reverse=True)[: min(r, t // 2)]:
        groups[b] |= groups.pop(a)
    return {frozenset(g) for g in groups.values()}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 23), st.integers(0, 30), st.integers(0, 2**31))
def test_the_most_similar_pairs_become_one(t, r, seed):
    rng = torch.Generator().manual_seed(seed)
    metric = torch.randn(2, t, 5, generator=rng)
    merging = bipartite(metric, r)
    assert merging.origin.shape == (2, t - min(r, t // 2))
    for row in range(2):
        got = {}
        for token, place in enumerate(merging.place[row].tolist()):
            got.setdefault(place, set()).add(token)
        assert {frozenset(g) for g in got.values()} == slow_bipartite(metric[row], r)
        assert all(int(merging.origin[row, place]) in group for place, group in got.items())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 3), st.floats(0, 1), st.integers(0, 2**31))
def test_means_keep_the_sum_and_tokens_alone_keep_their_bits(h, w, turn, share, seed):
    rng = torch.Generator().manual_seed(seed)
    source, target = cells((h, w), turn, torch.device("cpu"))
    assert sorted([*source.tolist(), *target.tolist()]) == list(range(h * w))
    assert len(target) == -(-h // 2) * -(-w // 2)
    x, weight = torch.randn(2, h * w, 3, generator=rng), torch.randint(1, 5, (2, h * w), generator=rng).float()
    r = int(share * len(source))
    merging = merge_into(x, source, target, r)
    mean, total = merged_mean(x, weight, merging)
    assert mean.shape == (2, h * w - r, 3) and torch.equal(total.sum(1), weight.sum(1))
    torch.testing.assert_close((mean * total[..., None]).sum(1), (x * weight[..., None]).sum(1), rtol=1e-4, atol=1e-4)
    alone = total == weight.gather(1, merging.origin)
    assert torch.equal(mean[alone], x.gather(1, merging.origin[..., None].expand(-1, -1, 3))[alone])


def test_matching_in_blocks_is_matching_at_once():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 17, 6, generator=rng), torch.randn(3, 11, 6, generator=rng)
    score, index = best_match(a, b)
    for block in (1, 12, 100, 190, 400):
        got = best_match(a, b, block)
        torch.testing.assert_close(got[0], score)
        assert torch.equal(got[1], index)


@pytest.mark.slow
def test_memory_of_matching_grows_with_tokens_not_their_square():
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.numel())
            return out

    metric = torch.randn(1, 6000, 4, generator=torch.Generator().manual_seed(0))
    with Watch():
        best_match(metric[:, 0::2], metric[:, 1::2], block=2**16)
    assert largest <= 2**16


def test_two_mergings_are_one():
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(2, 20, 4, generator=rng)
    first = bipartite(x, 6)
    y, size = merged_mean(x, torch.ones(2, 20), first)
    second = bipartite(y, 5)
    z, size = merged_mean(y, size, second)
    at_once, total = merged_mean(x, torch.ones(2, 20), first.then(second))
    torch.testing.assert_close(z, at_once)
    assert torch.equal(size, total)


def test_both_sums_agree():
    rng = torch.Generator().manual_seed(2)
    x, place = torch.randn(3, 30, 4, generator=rng), torch.randint(0, 9, (3, 30), generator=rng)
    torch.testing.assert_close(_sum_index(x, place, 9), _sum_segments(x, place, 9))


def test_equal_tokens_merge_into_themselves():
    x = torch.full((1, 9, 4), 0.3, dtype=torch.bfloat16)
    mean, total = merged_mean(x, torch.ones(1, 9), bipartite(x, 4))
    assert torch.equal(mean, x[:, :5]) and total.sum() == 9
    zero = torch.zeros(1, 9, 4)  # no direction at all
    assert merged_mean(zero, torch.ones(1, 9), bipartite(zero, 4))[0].isfinite().all()


def test_nothing_asked_for_is_the_identity():
    merging = unmerged(2, 5, torch.device("cpu"))
    assert isinstance(merging, Merging)
    x = torch.randn(2, 5, 3)
    assert torch.equal(merged_mean(x, torch.ones(2, 5), merging)[0], x)


@pytest.mark.parametrize("schedule", ["constant", "decreasing"])
@pytest.mark.parametrize("patches", [1, 7, 48, 1036])
def test_a_schedule_merges_as_much_as_was_asked_for(schedule, patches):
    tome = ToMe(["encoder"] * 4 + ["frame", "global"] * 4, ratio=0.5, schedule=schedule)
    by_block = tome.merged_by_block(patches)
    assert len(by_block) == 12 and sum(by_block) == patches // 2 and min(by_block) >= 0
    if schedule == "constant":
        assert max(by_block) - min(by_block) <= 1
    else:
        assert by_block[-1] == 0 and all(a + 1 >= b for a, b in pairwise(by_block))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"ratio is 1\.5"):
        ToMe(["frame"], ratio=1.5)
    with pytest.raises(ValueError, match="'other' must be one of"):
        ToMe(["frame"], mode="other")


def test_what_was_added_to_patches_of_one_token_is_averaged():
    """Known depth and rays are added behind the encoder: patches that were one differ again, and one of them does not stand for all."""
    tome = ToMe(["encoder"], ratio=0.5)
    merging = Merging(torch.tensor([[0, 0, 1, 1, 1, 2]]), torch.tensor([[0, 2, 5]]))
    plan = SizePlan(1, (2, 3), merging, torch.tensor([[2.0, 3.0, 1.0]]))
    x = torch.randn(1, 1, 1 + 6, 4, generator=torch.Generator().manual_seed(0))
    tokens = Tokens(x, torch.zeros(1, 1, 7, 2), 1, (2, 3), Layer("frame", 0))
    out, _ = tome.compress(tokens, plan, "backbone_in")
    patches = x[0, 0, 1:]
    want = torch.stack([patches[:2].mean(0), patches[2:5].mean(0), patches[5]])
    torch.testing.assert_close(out.x[0, 0, 1:], want)
    assert torch.equal(out.x[0, 0, 0], x[0, 0, 0])
