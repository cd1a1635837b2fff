"""Keys merged across time."""

import pytest
import torch
import torch.nn.functional as F
from accelerators.made_tokens import random, tokens_of

from come_ros.accelerators import Temporal
from come_ros.tokens import Layer

SPECIAL, GRID, FRAMES = 2, (3, 4), 3
T = SPECIAL + 12


@pytest.mark.parametrize("shared", [0, 1])
@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_it_is_attention_over_the_means_of_those_that_repeat_each_other(shared, ratio):
    x = random(1, FRAMES, T, 16)
    q, k, v = (random(1, 2, FRAMES * T + shared, 8, seed=i) for i in (1, 2, 3))
    temporal = Temporal(ratio=ratio)
    same, plan = temporal.compress(tokens_of(x, SPECIAL, GRID), None, "backbone_in")
    assert same.x is x
    got = temporal.attend(q, k, v, plan, Layer("global", 0, shared))

    f = F.normalize(x.flatten(1, 2)[0], dim=-1)
    later = [i for i in range(T, FRAMES * T) if i % T >= SPECIAL]
    similar = f[later] @ f[SPECIAL:T].T
    groups = {i: [i] for i in range(FRAMES * T + shared)}
    going = similar.max(1).values.argsort(descending=True)[: int(ratio * len(later))].tolist()
    for i in going:
        groups[SPECIAL + int(similar[i].argmax())].append(later[i])
        del groups[later[i]]
    km, vm = (torch.stack([m[0][:, g].mean(1) for g in groups.values()], 1)[None] for m in (k, v))
    bias = torch.tensor([len(g) for g in groups.values()]).float().log()
    want = F.scaled_dot_product_attention(q, km, vm, attn_mask=bias[None, None, None])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    repeats = temporal.merged(plan, FRAMES, GRID).flatten(1)
    assert {f * T + SPECIAL + int(p) for f in range(FRAMES) for p in repeats[f].nonzero()[:, 0]} == {
        later[i] for i in going
    }


def test_frames_that_repeat_the_first_exactly_lose_nothing():
    """A still camera: equal keys and values. All of them merged is dense attention."""
    one = random(1, 1, T, 16).expand(-1, FRAMES, -1, -1)
    k, v = (random(1, 2, T, 8, seed=i).repeat(1, 1, FRAMES, 1) for i in (2, 3))
    q = random(1, 2, FRAMES * T, 8, seed=1)
    temporal = Temporal(ratio=1.0)
    _, plan = temporal.compress(tokens_of(one, SPECIAL, GRID), None, "backbone_in")
    assert plan.size.shape[1] == FRAMES * T - 2 * 12
    got = temporal.attend(q, k, v, plan, Layer("global", 0))
    torch.testing.assert_close(got, F.scaled_dot_product_attention(q, k, v), rtol=1e-5, atol=1e-6)


def test_the_frame_that_repeats_most_is_merged_first():
    x = random(1, FRAMES, T, 16)
    x[:, 1] = x[:, 0]
    temporal = Temporal(ratio=0.5)
    _, plan = temporal.compress(tokens_of(x, SPECIAL, GRID), None, "backbone_in")
    assert plan.repeats.flatten(1).sum(1).tolist() == [0, 12, 0]


def test_one_frame_and_other_parts_are_left_alone():
    temporal = Temporal(ratio=1.0)
    assert temporal.compress(tokens_of(random(1, 1, T, 16), SPECIAL, GRID), None, "backbone_in")[1] is None
    _, plan = temporal.compress(tokens_of(random(1, FRAMES, T, 16), SPECIAL, GRID), None, "backbone_in")
    q = random(FRAMES, 2, T, 8)
    assert torch.equal(temporal.attend(q, q, q, plan, Layer("frame", 0)), F.scaled_dot_product_attention(q, q, q))
    with pytest.raises(ValueError, match="ratio is 3"):
        Temporal(ratio=3)
