"""FastVGGT-style merging in global attention."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from come_ros.accelerators import Fast, Tokens
from come_ros.accelerators.fast import PROTECTED, partition
from come_ros.tokens import Layer


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))
def test_who_may_go_and_who_may_receive(frames, h, w, special):
    t = special + h * w
    source, target = partition(frames, t, special, (h, w), torch.device("cpu"))
    source, target = set(source.tolist()), set(target.tolist())
    assert not source & target and max(source | target) < frames * t
    assert {i for i in target if i < t} == set(range(special, t)) and min(source, default=t) >= t  # frame 0 receives
    for f in range(1, frames):
        patches = {i - f * t - special for i in source | target if i // t == f}
        assert patches == {p for p in range(h * w) if p % PROTECTED}
        for row in range(0, h, 2):
            for column in range(0, w, 2):
                cell = {r * w + c for r in (row, row + 1) for c in (column, column + 1) if r < h and c < w}
                assert len({i - f * t - special for i in target if i // t == f} & cell) <= 1


def tokens_of(x, special, grid, part="global"):
    return Tokens(x, torch.zeros(1, 1, x.shape[2], 2), special, grid, Layer(part, 0))


@pytest.mark.parametrize("shared", [0, 1])
@pytest.mark.parametrize("ratio", [0.2, 1.0])
def test_it_is_attention_over_means_handed_back(shared, ratio):
    rng = torch.Generator().manual_seed(0)
    frames, special, grid, heads, d = 3, 2, (4, 5), 2, 8
    t = special + 20
    n = frames * t
    x = torch.randn(1, frames, t, 16, generator=rng)
    q, k, v = (torch.randn(1, heads, n + shared, d, generator=rng) for _ in range(3))
    fast = Fast(ratio=ratio)
    same, plan = fast.compress(tokens_of(x, special, grid), None, "before_attention")
    assert torch.equal(same.x, x)
    got = fast.attend(q, k, v, plan, Layer("global", 0, shared))

    source, target = partition(frames, t, special, grid, torch.device("cpu"))
    f = F.normalize(x.flatten(1, 2)[0], dim=-1)
    similar = f[source] @ f[target].T
    r = min(int(ratio * frames * 20), len(source))
    groups = {i: [i] for i in range(n + shared)}
    for i in similar.max(1).values.argsort(descending=True)[:r].tolist():
        groups[int(target[similar[i].argmax()])].append(int(source[i]))
        del groups[int(source[i])]
    qm, km, vm = (torch.stack([m[0][:, g].mean(1) for g in groups.values()], 1)[None] for m in (q, k, v))
    out = F.scaled_dot_product_attention(qm, km, vm)
    want = torch.empty_like(q)
    for i, g in enumerate(groups.values()):
        want[:, :, g] = out[:, :, i : i + 1]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert len(groups) == n + shared - r


def test_only_global_attention_is_touched():
    x = torch.randn(1, 2, 22, 8)
    fast = Fast()
    q, k, v = (torch.randn(2, 2, 22, 4) for _ in range(3))
    plan = fast.compress(tokens_of(x, 2, (4, 5)), None, "before_attention")[1]
    assert fast.compress(tokens_of(x, 2, (4, 5), "frame"), plan, "before_attention")[1] is plan
    got = fast.attend(q, k, v, plan, Layer("frame", 0))
    torch.testing.assert_close(got, F.scaled_dot_product_attention(q, k, v))
    assert (
        fast.compress(tokens_of(x[:, :1], 2, (4, 5)), None, "before_attention")[1] is None
    )  # one frame: nobody may go
    with pytest.raises(ValueError, match=r"ratio is -1"):
        Fast(ratio=-1)


def test_what_shares_a_query_is_told_for_the_overlay():
    x = torch.randn(1, 3, 22, 8, generator=torch.Generator().manual_seed(0))
    fast = Fast(ratio=0.4)
    plan = fast.compress(tokens_of(x, 2, (4, 5)), None, "before_attention")[1]
    merged = fast.merged(plan, 3, (4, 5))
    assert merged.shape == (3, 4, 5) and merged.dtype == torch.bool and fast.merged(None, 3, (4, 5)) is None
    place = plan.place[0].view(3, 22)[:, 2:]
    want = [[(plan.place == p).sum() > 1 for p in frame] for frame in place]
    assert merged.flatten(1).tolist() == [[bool(w) for w in frame] for frame in want]
    assert merged.sum() >= int(0.4 * 60)
