"""Merge, restore and weighted attention: against the recorded reference, and against what they must mean."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from come_ros.accelerators.come import make_plan, merged_patches, plan_of
from come_ros.accelerators.confidence import ConfidencePredictor
from come_ros.kernels import KeyWeights, group_members, merge_layout, merge_tokens, restore_tokens, weighted_attention

CASES = ("merge2d_a", "merge2d_b", "merge2d_c", "merge2d_d")


@pytest.fixture(scope="module")
def recorded(shared_data):
    return torch.load(shared_data / "parity" / "come_seed7.pt", weights_only=True)


@pytest.mark.parametrize("activation", ["expp1", "none"])
def test_the_predictor_equals_the_reference(recorded, activation):
    case = recorded[f"predictor_{activation}"]
    width, dim = case["tokens"].shape[-1], case["state_dict"]["proj1.weight"].shape[0]
    predictor = ConfidencePredictor(width, dim, activation=activation)
    predictor.load_state_dict(case["state_dict"])
    # with expp1 the values span orders of magnitude
    torch.testing.assert_close(predictor(case["tokens"]), case["confidence"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*CASES, "merge1d"])
def test_merging_equals_the_reference(recorded, name):
    case = recorded[name]
    special, tokens = case["start_index"], case["tokens"]
    # a run of tokens is a group of one row
    grid = tuple(case.get("grid", (1, tokens.shape[1] - special)))
    group = tuple(case.get("group", (1, case.get("group_size"))))
    plan = plan_of(case["merge_mask"], len(tokens), grid, group, None, torch.zeros(1))
    merged = merge_tokens(tokens, plan.source, special, grid, group)
    restored = restore_tokens(merged, plan.rev, special)
    torch.testing.assert_close(restored, case["restored"], rtol=0, atol=1e-6)
    # the same tokens with the same weights, in whatever order
    weight = F.pad(plan.weight.flatten(0, 1), (special, 0), value=1.0)
    real = weight > 0
    assert real.sum(1).tolist() == case["offset"].diff().tolist()
    for i, (a, b) in enumerate(zip(case["offset"][:-1], case["offset"][1:], strict=True)):
        ours = torch.cat((merged[i][real[i]], weight[i][real[i], None]), 1)
        theirs = torch.cat((case["packed"][a:b], case["weight"][a:b, None].float()), 1)
        ours, theirs = (t[torch.tensor(sorted(range(len(t)), key=lambda j: t[j].tolist()))] for t in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


grids = st.tuples(st.integers(1, 9), st.integers(1, 9))
groups = st.sampled_from([(1, 1), (2, 2), (3, 3), (1, 4), (2, 3)])


@given(grids, groups, st.integers(0, 3), st.integers(0, 3), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_restore_returns_every_patch_to_its_place(grid, group, rows, special, channels, seed):
    rng = torch.Generator().manual_seed(seed)
    members, edge = group_members(grid, group, torch.device("cpu"))
    merged = torch.rand(rows, len(members), generator=rng) < torch.rand((), generator=rng)
    patches, n = grid[0] * grid[1], group[0] * group[1]
    assert sorted([*members.flatten().tolist(), *edge.tolist()]) == list(range(patches))
    fewest = int(merged.sum(1).min()) if rows and len(members) else 0
    length = patches - fewest * (n - 1)
    source, rev = merge_layout(merged, grid, group, length)
    x = torch.randn(rows, special + patches, channels, generator=rng)
    short = merge_tokens(x, source, special, grid, group)
    assert short.shape == (rows, special + length, channels)
    back = restore_tokens(short, rev, special)
    want = x.clone()
    for r in range(rows):
        for g, group_patches in enumerate(members):
            if merged[r, g]:
                want[r, special + group_patches] = x[r, special + group_patches].mean(0)
    torch.testing.assert_close(back, want)
    assert torch.equal(back[:, :special], x[:, :special])
    # padding is nothing but padding: it lies at the end, and no patch is sent there
    used = (source >= 0).sum(1)
    assert all((source[r, : used[r]] >= 0).all() and (rev[r] < used[r]).all() for r in range(rows))


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("way", ["masked", "two_calls", "channel"])
def test_a_key_of_weight_n_counts_like_n_equal_keys(dtype, near, way):
    if way == "two_calls" and dtype == torch.float64:
        near = 1e-6  # its log-sum-exp is fp32
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 30, 16, dtype=dtype, generator=rng) for _ in range(3))
    weight = torch.ones(2, 2, 15)
    weight[..., -4:] = 9
    keys = KeyWeights(weight, 2, 4, 9.0)
    every = torch.arange(30).repeat_interleave(weight[0].flatten().long())
    want = F.scaled_dot_product_attention(q, k[:, :, every], v[:, :, every])
    assert (weighted_attention(q, k, v, keys, way) - want).abs().max() < near
    assert (F.scaled_dot_product_attention(q, k, v) - want).abs().max() > 1e-2


@pytest.mark.slow
def test_flex_attention_agrees():
    rng = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 2, 24, 16, generator=rng) for _ in range(3))
    keys = KeyWeights(torch.rand(1, 24, generator=rng) + 0.5)
    got = weighted_attention(q, k, v, keys, "flex")
    torch.testing.assert_close(got, weighted_attention(q, k, v, keys, "masked"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["masked", "channel"])
def test_padding_counts_for_nothing(way):
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 12, 8, generator=rng) for _ in range(3))
    weight = torch.tensor([[1.0] * 8 + [4.0] * 2 + [0.0] * 2])
    got = weighted_attention(q, k, v, KeyWeights(weight), way)
    k[:, :, 10:] = 100
    v[:, :, 10:] = torch.nan_to_num(v[:, :, 10:] * 1e6)
    torch.testing.assert_close(weighted_attention(q, k, v, KeyWeights(weight), way), got)


@pytest.mark.parametrize("head_dim", [8, 14, 15, 16, 64])
def test_the_bias_as_channels_is_precise_in_half_precision(head_dim):
    rng = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 3, 40, head_dim, generator=rng).bfloat16() for _ in range(3))
    keys = KeyWeights(torch.randint(1, 700, (2, 40), generator=rng).float())
    want = weighted_attention(q.float(), k.float(), v.float(), keys, "masked")
    got = weighted_attention(q, k, v, keys, "channel")
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=0.02, atol=0.01)


def test_a_way_that_does_not_apply_is_refused():
    q = torch.zeros(1, 1, 4, 8)
    with pytest.raises(ValueError, match="two_calls needs"):
        weighted_attention(q, q, q, KeyWeights(torch.ones(1, 4)), "two_calls")
    with pytest.raises(ValueError, match="must be auto"):
        weighted_attention(q, q, q, KeyWeights(torch.ones(1, 4)), "magic")


@given(grids, groups, st.floats(0, 1), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_every_frame_merges_the_same_number_of_its_least_sure_groups(grid, group, ratio, frames, scenes, seed):
    confidence = torch.rand(scenes, frames, *grid, generator=torch.Generator().manual_seed(seed))
    many = (grid[0] // group[0]) * (grid[1] // group[1])
    k = int(ratio * many)
    plan = make_plan(confidence, group, k)
    assert (plan.merged.sum(1) == k).all() and plan.tail == k
    assert plan.source.shape == (scenes * frames, grid[0] * grid[1] - k * (group[0] * group[1] - 1))
    if 0 < k < many:
        members, _ = group_members(grid, group, torch.device("cpu"))
        means = confidence.flatten(0, 1).flatten(1)[:, members.flatten()].unflatten(1, members.shape).mean(2)
        low = means.masked_fill(~plan.merged, -1).max(1).values
        assert (low <= means.masked_fill(plan.merged, 2).min(1).values + 1e-6).all()
    assert (merged_patches(plan).flatten(1).sum(1) == k * group[0] * group[1]).all()


def test_a_budget_of_the_window_is_spent_where_confidence_is_lowest():
    confidence = torch.ones(1, 2, 6, 6)
    confidence[0, 1] = torch.rand(6, 6)
    plan = make_plan(confidence, (3, 3), 2, "window")
    assert plan.merged.sum(1).tolist() == [0, 4] and plan.tail is None
    assert plan.source.shape == (2, 36) and (plan.source[1] < 0).sum() == 32
    assert (plan.weight.flatten(0, 1).sum(1) == 36).all()
