"""Groups of frames that share the first one."""

import pytest
import torch
import torch.nn.functional as F
from accelerators.made_tokens import random, tokens_of

from come_ros.accelerators import Subscene
from come_ros.accelerators.subscene import BY, alike
from come_ros.tokens import Layer

SPECIAL, GRID, FRAMES = 2, (2, 3), 6
T = SPECIAL + 6


def groups_of(plan, row=0):
    order, out, start = plan.order[row].tolist(), [], 0
    for size in plan.sizes:
        out.append(set(order[start : start + size]))
        start += size
    return out


@pytest.mark.parametrize("shared", [0, 1])
@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("ratio", [0.5, 0.75, 1.0])
def test_it_is_attention_within_the_groups_and_to_the_first_frame(shared, by, ratio):
    x = random(2, FRAMES, T, 16)
    q, k, v = (random(2, 2, FRAMES * T + shared, 8, seed=i) for i in (1, 2, 3))
    subscene = Subscene(ratio=ratio, by=by)
    same, plan = subscene.compress(tokens_of(x, SPECIAL, GRID), None, "backbone_in")
    assert same.x is x
    got = subscene.attend(q, k, v, plan, Layer("global", 0, shared))
    for row in range(2):
        may = torch.eye(FRAMES, dtype=torch.bool)
        may[0], may[:, 0] = True, True
        for group in groups_of(plan, row):
            for i in group:
                may[i, list(group)] = True
        mask = torch.ones(FRAMES * T + shared, FRAMES * T + shared, dtype=torch.bool)
        mask[: FRAMES * T, : FRAMES * T] = may.repeat_interleave(T, 0).repeat_interleave(T, 1)
        want = F.scaled_dot_product_attention(q[row], k[row], v[row], attn_mask=mask)
        torch.testing.assert_close(got[row], want, rtol=1e-5, atol=1e-6)
        assert subscene.read_ratio(plan, Layer("global", 0), FRAMES, GRID) == pytest.approx(float(may.float().mean()))


@pytest.mark.parametrize("frames", [2, 3, 7, 24])
@pytest.mark.parametrize(("ratio", "wanted"), [(0.01, 2), (0.5, 2), (0.75, 4), (0.8, 5), (0.9, 10), (1.0, 1000)])
def test_sizes_differ_by_one_at_most_and_hold_every_frame(frames, ratio, wanted):
    sizes = Subscene(ratio=ratio).sizes(frames)
    assert sum(sizes) == frames - 1 and max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    assert len(sizes) == min(frames - 1, wanted)


def test_frames_that_look_alike_come_into_one_group_in_whatever_order():
    """Three places, two frames of each and one of the first."""
    places = torch.eye(4)[[0, 1, 1, 2, 2, 3, 3]] + 0.05 * random(7, 4)
    order = torch.tensor([0, 5, 1, 3, 6, 2, 4])
    for x in (places, places[order]):
        found = alike(x[None], (2, 2, 2))
        place = x[found[0]].argmax(dim=1)
        assert (place[0::2] == place[1::2]).all() and len(set(place.tolist())) == 3


def test_a_full_group_leaves_frames_to_others():
    """All look alike: the groups are of equal size all the same."""
    found = alike(torch.ones(2, 8, 4), (3, 2, 2))
    assert found.sort(dim=1).values.tolist() == [list(range(1, 8))] * 2


def test_other_parts_and_short_windows_are_left_alone():
    subscene = Subscene(ratio=0.5)
    assert subscene.compress(tokens_of(random(1, 2, T, 16), SPECIAL, GRID), None, "backbone_in")[1] is None
    _, plan = subscene.compress(tokens_of(random(1, FRAMES, T, 16), SPECIAL, GRID), None, "backbone_in")
    q = random(FRAMES, 2, T, 8)
    assert torch.equal(subscene.attend(q, q, q, plan, Layer("frame", 0)), F.scaled_dot_product_attention(q, q, q))
    with pytest.raises(ValueError, match="ratio is 3"):
        Subscene(ratio=3)
    with pytest.raises(ValueError, match="by 'chance'"):
        Subscene(by="chance")
