"""Keys on a grid that shifts from frame to frame, in the outer layers."""

import pytest
import torch
from accelerators.made_tokens import random, tokens_of

from come_ros.accelerators import Regime
from come_ros.accelerators.regime import by_likeness, on_grid
from come_ros.tokens import Layer

SPECIAL, GRID, FRAMES = 2, (4, 5), 6
T = SPECIAL + 20


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("grid", [(4, 5), (9, 12), (6, 6)])
def test_the_offsets_together_cover_each_patch_once(grid, stride):
    assert (sum(on_grid(grid, stride, p).int() for p in range(stride**2)) == 1).all()


def test_neighbouring_offsets_share_neither_row_nor_column():
    for stride in (2, 3, 4):
        for phase in range(stride - 1):
            a, b = (on_grid((12, 12), stride, p).nonzero() for p in (phase, phase + 1))
            assert not set(a[:, 0].tolist()) & set(b[:, 0].tolist())
            assert not set(a[:, 1].tolist()) & set(b[:, 1].tolist())


def test_the_first_frame_and_special_tokens_are_read_whole_the_rest_on_its_grid():
    x = random(2, FRAMES, T, 16)
    regime = Regime(4, ratio=1.0)
    same, plan = regime.compress(tokens_of(x, SPECIAL, GRID), None, "backbone_in")
    assert same.x is x
    index = regime.reach(tokens_of(x, SPECIAL, GRID), plan, Layer("global", 0)).index
    for row in range(2):
        read = torch.zeros(FRAMES * T, dtype=torch.bool)
        read[index[row]] = True
        assert int(read.sum()) == index.shape[1], "no token twice"
        read = read.view(FRAMES, T)
        assert read[0].all() and read[:, :SPECIAL].all()
        ranks = by_likeness(x[:, :, SPECIAL:].mean(2))[row]
        for frame in range(1, FRAMES):
            want = on_grid(GRID, 2, int(ranks[frame - 1]) % 4)
            assert torch.equal(read[frame, SPECIAL:].view(GRID), want)
    share = regime.read_ratio(plan, Layer("global", 0), FRAMES, GRID)
    assert share == pytest.approx((index.shape[1] - FRAMES * SPECIAL) / (FRAMES * 20))


def test_without_shifts_all_frames_read_the_same_patches():
    x = random(1, FRAMES, T, 16)
    regime = Regime(4, ratio=1.0, shifted=False)
    _, plan = regime.compress(tokens_of(x, SPECIAL, GRID), None, "backbone_in")
    read = torch.zeros(FRAMES * T, dtype=torch.bool)
    read[regime.reach(tokens_of(x, SPECIAL, GRID), plan, Layer("global", 0)).index[0]] = True
    assert (read.view(FRAMES, T)[1:, SPECIAL:] == on_grid(GRID, 2, 0).flatten()).all()


@pytest.mark.parametrize(
    ("layers", "ratio", "thinned"),
    [(4, 0.5, [0, 3]), (6, 0.5, [0, 4, 5]), (24, 0.25, [0, 1, 2, 21, 22, 23]), (3, 1.0, [0, 1, 2]), (4, 0.01, [3])],
)
def test_the_outer_layers_are_thinned_from_both_ends(layers, ratio, thinned):
    regime = Regime(layers, ratio=ratio)
    assert [i for i in range(layers) if regime.thins(Layer("global", i))] == thinned
    assert not regime.thins(Layer("frame", 0))


def test_a_stride_of_one_and_a_lone_frame_reduce_nothing():
    assert Regime(4, stride=1).sites == frozenset() and not Regime(4, stride=1).thins(Layer("global", 0))
    assert Regime(4).compress(tokens_of(random(1, 1, T, 16), SPECIAL, GRID), None, "backbone_in")[1] is None
    with pytest.raises(ValueError, match="stride 0"):
        Regime(4, stride=0)
