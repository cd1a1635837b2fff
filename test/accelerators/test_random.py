"""Random groups: as many as Co-Me merges, the same for the same frame, others for another, and no pattern in them."""

import pytest
import torch
from models import tiny

from come_ros.accelerators import make_accelerator
from come_ros.accelerators.random import RandomConfidence
from come_ros.config import Config


def tokens(seed, frames=6, h=9, w=12, c=48):
    g = torch.Generator().manual_seed(seed)
    common = torch.randn(c, generator=g)  # frames of a window are alike
    return 5 * common + torch.randn(1, frames, h, w, c, generator=g)


def test_numbers_are_even_and_belong_to_the_frame_not_to_its_place():
    scorer, x = RandomConfidence(48), tokens(0)
    out = scorer(x)
    assert out.shape == (1, 6, 9, 12) and out.min() >= 0 and out.max() < 1
    assert torch.equal(scorer(x), out)
    order = [3, 0, 5, 1, 4, 2]
    assert torch.equal(scorer(x[:, order]), out[:, order])
    assert torch.equal(scorer(torch.cat([x, tokens(1)]))[:1], out)  # nor to the batch
    assert len({tuple(frame.flatten().tolist()) for frame in out[0]}) == 6


def test_every_place_is_drawn_as_often_as_any_other():
    scorer = RandomConfidence(48)
    out = torch.cat([scorer(tokens(seed)) for seed in range(100)]).flatten(0, 1)  # (600, 9, 12)
    lowest = out.flatten(1).argsort(dim=1)[:, :54]
    often = torch.bincount(lowest.flatten(), minlength=108) / 600
    assert (often - 0.5).abs().max() < 0.1  # five standard deviations
    assert abs(out.mean() - 0.5) < 0.01
    pairs = torch.corrcoef(torch.stack([out[:, :, :-1].flatten(), out[:, :, 1:].flatten()]))[0, 1]
    assert pairs.abs() < 0.02  # neighbours know nothing of each other


def test_rounding_errors_hardly_ever_change_anything():
    scorer, x = RandomConfidence(48), tokens(2, frames=40)
    same = (scorer(x * (1 + 1e-6)) == scorer(x)).flatten(2).all(dim=2)
    assert same.sum() >= 38  # which of a thousand signs is nearly zero depends on how the CPU sums


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_no_edge_votes_whatever_is_asked_for_first_or_later(ratio):
    config = Config.from_flat({"accelerator.name": "random", "accelerator.edge_weight": 3.0})
    made = make_accelerator(config, tiny("vggt").shape, "")
    later = made.configured(config.replace(**{"accelerator.ratio": ratio}))
    assert made.edge_weight == later.edge_weight == 0.0 and later.ratio == ratio
    assert (later is made) == (ratio == 0.5)
