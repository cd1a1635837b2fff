"""Older keyframes give up keys: what is exact stays exact, special tokens stay, nothing given up changes no bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import tiny

from come_ros.accelerators import NoAccelerator
from come_ros.backbones.aging import Kept, aged, evicted, grouped, repeated
from come_ros.backbones.lingbot import turns
from come_ros.backbones.stream import Step
from come_ros.backbones.torch_backbone import TorchBackbone
from come_ros.config import Config
from come_ros.config_groups import StreamParameters

WAYS = ["groups", "repeats", "evict", "random"]


@pytest.fixture(scope="module")
def images():
    """A scene that slides by, so that frames repeat one another."""
    blocks = np.random.default_rng(1).integers(0, 256, (4, 30, 3), np.uint8).repeat(14, axis=0).repeat(14, axis=1)
    return np.stack([blocks[:, 7 * i : 7 * i + 70] for i in range(14)])  # (S, 56, 70, 3)


def slid(images, **parameters):
    """Predictions of all frames, and what is kept after each."""
    backbone = TorchBackbone(
        "lingbot", tiny("lingbot"), NoAccelerator(), device="cpu", stream=StreamParameters(**parameters)
    )
    cache, out, kept = backbone.new_cache(), [], []
    for i in range(2, len(images)):
        names = tuple((j, "") for j in range(i - 2, i + 1))
        out.append(backbone.predict(images[i - 2 : i + 1], step=Step(names, cache)))
        kept.append(cache.state)
    return out, kept, cache


def same(a, b):
    return np.array_equal(a.depth, b.depth) and np.array_equal(a.window_from_camera, b.window_from_camera)


@pytest.fixture(scope="module")
def dense(images):
    return slid(images, window=6)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_given_up_changes_no_bit(images, dense, way):
    for parameters in ({"reduce_ratio": 0.0}, {"whole": 6}):
        out = slid(images, window=6, reduce=way, **parameters)[0]
        assert all(same(a, b) for a, b in zip(out, dense[0], strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_older_keyframes_keep_fewer_keys_and_all_special_tokens(images, dense, way):
    out, states, cache = slid(images, window=6, reduce=way, reduce_ratio=0.5, whole=2)
    assert cache.mib < 0.9 * dense[2].mib and cache.mib <= cache.most_mib
    frames = states[-1].local
    assert [kept.aged for kept in frames] == [True] * 4 + [False] * 2
    left = [len(kept) - 6 for kept in frames]  # of 20 patches
    assert left[-1] == left[-2] == 20 and all(10 <= n < 20 for n in left[:-2])
    if way in ("repeats", "evict"):  # groups are merged as a whole or not at all
        assert left[:-2] == [10] * 4
    for state in states:
        for kept in state.local:
            assert kept.special == 6 and len(kept.keys[0][0, 0]) == len(kept.values[-1][0, 0]) == len(kept)
    if way != "evict":  # what is merged still counts
        stays = states[4].local  # no aged frame has left the window yet
        assert sum(float(kept.weights().sum()) for kept in stays) == pytest.approx(26 * len(stays))
    assert all(np.isfinite(p.depth).all() for p in out) and not same(out[-1], dense[0][-1])
    again = slid(images, window=6, reduce=way, reduce_ratio=0.5, whole=2)[0]
    assert all(same(a, b) for a, b in zip(out, again, strict=True))


def frame(patches, grid=(4, 6), blocks=2, heads=2, d=16, number=3, special=2, equal=False):
    """A keyframe whose patches look like `patches` (P, C) floats."""
    rows, columns = grid
    places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).view(-1, 2) + 1
    places = torch.cat((torch.zeros(special, 2, dtype=torch.long), places))

    def turn(at, n, frame):
        return turns(torch.zeros_like(at) if equal else at, n, frame, () if equal else (4, 6, 6), d)

    generator = torch.Generator().manual_seed(number)
    x = torch.cat((torch.randn(special, heads * d, generator=generator), patches))
    raw = x.view(1, -1, heads, d).transpose(1, 2)
    key = turn(places, special, number).apply(raw)
    return Kept((number,), (key, 2 * key)[:blocks], (raw, raw + 1)[:blocks], special, None, places, turn)


def attend(frames, q):
    """Attention of queries (1, heads, n, d) over the keys of the first block of some frames."""
    k, v = (torch.cat([getattr(f, part)[0] for f in frames], dim=2) for part in ("keys", "values"))
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.cat([f.weights() for f in frames]).log()[None, None, None]
    )


def test_groups_of_equal_patches_are_merged_first_and_without_error():
    torch.manual_seed(0)
    patches = torch.randn(24, 32)
    patches.view(4, 6, 32)[:2, :2] = patches[0]  # the upper left group
    patches.view(4, 6, 32)[2:, 4:] = patches[23]  # and the lower right one
    kept = frame(patches, equal=True)
    merged = grouped(kept, 6, (2, 2))
    assert len(merged) == len(kept) - 6 and sorted(merged.weight.tolist()) == [1.0] * 18 + [4.0] * 2
    places = {tuple(p) for p, w in zip(merged.positions.tolist(), merged.weight.tolist(), strict=True) if w == 4}
    assert places == {(1.5, 1.5), (3.5, 5.5)}
    q = torch.randn(1, 2, 5, 16)
    torch.testing.assert_close(attend([merged], q), attend([kept], q), rtol=1e-4, atol=1e-5)
    again = grouped(merged, 3, (2, 2))  # what is one token already is left alone, and nothing goes beyond `count`
    assert len(again) == len(merged) - 3 and float(again.weight.sum()) == 26
    assert grouped(kept, 2, (2, 2)) is kept  # no group is so small


def test_a_merged_key_is_the_mean_of_keys_that_are_turned_back():
    torch.manual_seed(1)
    patches = torch.randn(24, 32)
    patches.view(4, 6, 32)[:2, :2] = patches[0]
    merged = grouped(frame(patches), 3, (2, 2))
    token = int(merged.weight.argmax())
    raw = patches[0].view(1, 1, 2, 16).transpose(1, 2)
    table = merged.turn(merged.positions, 2, 3)
    at = type(table)(table.cos[..., token : token + 1, :], table.sin[..., token : token + 1, :])
    torch.testing.assert_close(merged.keys[0][:, :, token : token + 1], at.apply(raw), rtol=1e-4, atol=1e-5)


def test_patches_join_the_newer_ones_that_repeat_them():
    torch.manual_seed(2)
    patches = torch.randn(24, 32)
    other = torch.randn(24, 32)
    other[5] = patches[7]
    old, new = frame(patches, number=3, equal=True), frame(other, number=9, equal=True)
    shorter, (joined,) = repeated(old, 1, [new])
    assert len(shorter) == len(old) - 1 and len(joined) == len(new)
    assert 2 + 7 not in [i for i, p in enumerate(old.positions.tolist()) if p in shorter.positions[2:].tolist()]
    assert joined.weight.argmax() == 2 + 5 and joined.weight.sum() == len(new) + 1
    q = torch.randn(1, 2, 5, 16)
    torch.testing.assert_close(attend([shorter, joined], q), attend([old, new], q), rtol=1e-4, atol=1e-5)
    # the newer key stays, and the value is the mean by weight
    *_, (far,) = repeated(old, 24, [new])
    assert all(torch.equal(a, b) for a, b in zip(far.keys, new.keys, strict=True))
    assert far.weight.sum() == len(new) + 24


def test_what_is_least_attended_goes_and_special_tokens_never():
    kept = frame(torch.randn(24, 32))
    mass = torch.arange(26.0)
    mass[:2] = -1
    less = evicted(dataclasses.replace(kept, mass=mass), 10)
    assert less.positions.tolist() == kept.positions[[0, 1, *range(12, 26)]].tolist()
    assert evicted(kept, 10) is kept  # nothing was measured


def test_attention_is_measured_where_it_decides(images):
    states = slid(images, window=6, reduce="evict", whole=3)[1]
    mass = [kept.mass for kept in states[-1].local]
    assert all(m is not None and (m >= 0).all() for m in mass)
    assert float(mass[-2].sum()) > float(mass[-1].sum())  # it was looked at twice
    assert all(kept.mass is None for kept in slid(images, window=6, reduce="groups", whole=3)[1][-1].local)


def test_the_parameters_reach_the_cache_while_it_runs():
    backbone = TorchBackbone("lingbot", tiny("lingbot"), NoAccelerator(), device="cpu")
    changed = backbone.configured(Config.from_flat({"stream.reduce": "groups", "stream.whole": 2}))
    assert changed.stream.reduce == "groups" and backbone.stream.reduce == "none"
    kept = tuple(frame(torch.randn(24, 32), number=i) for i in range(4))
    assert (
        aged(kept, backbone.stream) is kept and [k.aged for k in aged(kept, changed.stream)] == [True] * 2 + [False] * 2
    )
