"""Causal models: what is kept from frame to frame, where a stream begins again, and that a pass which fails leaves nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from models import WIDTH, CountedGraphs, graphed, tiny

import come_ros.backbones.lingbot as lingbot
import come_ros.backbones.model as layered
from come_ros.accelerators import CoMe, NoAccelerator, Temporal
from come_ros.accelerators.confidence import ConfidencePredictor
from come_ros.backbones.stream import EncoderCache, Step
from come_ros.backbones.torch_backbone import TorchBackbone
from come_ros.config import Config
from come_ros.config_groups import StreamParameters
from come_ros.errors import Cancelled, ConfigError, OutOfMemory


@pytest.fixture(scope="module")
def images():
    blocks = np.random.default_rng(1).integers(0, 256, (22, 4, 5, 3), np.uint8)
    return blocks.repeat(14, axis=1).repeat(14, axis=2)  # (S, 56, 70, 3)


def backbone_of(accelerator=None, **parameters):
    return TorchBackbone(
        "lingbot", tiny("lingbot"), accelerator or NoAccelerator(), device="cpu", stream=StreamParameters(**parameters)
    )


def come(ratio):
    torch.manual_seed(3)
    predictor = ConfidencePredictor(WIDTH, 8, scope="frame")
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return CoMe(predictor.eval(), 0, group=(2, 2), ratio=ratio)


def step(frames, cache, dense=None):
    return Step(tuple((i, "camera") for i in frames), cache, dense)


def slide(backbone, images, windows, cache=None):
    cache = backbone.new_cache() if cache is None else cache  # an empty one counts as false
    return [backbone.predict(images[list(w)], step=step(w, cache)) for w in windows]


def same(a, b):
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("depth", "confidence", "window_from_camera"))


def test_frames_are_run_once_however_many_a_window_brings(images):
    """Bit for bit: what comes out depends on the frames since the stream began, not on how they were cut into windows."""
    backbone = backbone_of(window=3)
    one = slide(backbone, images, [(0, 1, 2), (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5, 6)])
    more = slide(backbone, images, [(0, 1, 2), (2, 3, 4, 5, 6)])
    assert [p.dense for p in one] == [None, (3,), (3,), (3,), (3,)] and [p.reused for p in one] == [0, 3, 3, 3, 3]
    assert more[1].dense == (1, 2, 3, 4) and more[1].reused == 1
    assert np.array_equal(np.concatenate([p.depth for p in one[1:]]), more[1].depth)
    assert np.array_equal(one[4].window_from_camera[1:], more[1].window_from_camera[2:])
    # poses of frames that were seen are never told differently
    assert np.array_equal(one[1].window_from_camera[:3], one[0].window_from_camera)


def test_without_a_step_a_window_is_a_stream_of_its_own(images):
    backbone = backbone_of()
    alone, kept = backbone.predict(images[:4]), slide(backbone, images, [(0, 1, 2, 3)])[0]
    assert same(alone, kept) and alone.dense is None


def test_a_stream_begins_again_with_the_whole_window(images):
    backbone = backbone_of(most=6)
    cache = backbone.new_cache()

    def frames(window, some=images):
        out = backbone.predict(some[list(window)], step=step(window, cache))
        return len(window) - out.reused, cache.restarts

    assert frames((0, 1, 2)) == (3, 1) and frames((1, 2, 3)) == (1, 1)
    assert frames((10, 11)) == (2, 2)  # it knows none
    assert frames((9, 10, 11, 12)) == (4, 3)  # an unknown frame is older than a known one
    assert frames((11, 12, 13, 14)) == (2, 3) and cache.state.count == 6
    assert frames((12, 13, 14, 15)) == (4, 4)  # as long as it may be
    assert frames((14, 15, 16), images[:, :42]) == (3, 5)  # another size
    cache.clear()
    assert frames((15, 16, 17)) == (3, 6) and (cache.encoded, cache.reused) == (22, 4)
    assert same(backbone.predict(images[15:18]), slide(backbone, images, [(15, 16, 17)])[0])


@pytest.mark.parametrize("interval", [1, 3])
def test_what_is_kept_is_bounded(images, interval):
    backbone = backbone_of(window=4, keyframe_interval=interval)
    cache, most = backbone.new_cache(), []
    for i in range(20):
        slide(backbone, images, [(0, 1) if i == 0 else (i, i + 1)], cache)
        most.append((cache.mib, cache.most_mib, len(cache.state.local)))
    mib, bound, local = zip(*most, strict=True)
    assert max(local) == 4 and all(m <= b for m, b in zip(mib, bound, strict=True))
    assert cache.state.count == 2 + -(-19 // interval)
    if interval == 1:  # once the window is full, special tokens and camera keys are all that grows
        assert np.diff(mib[6:]).max() < 0.3 * np.diff(mib[:4]).max()


def test_a_bound_on_memory_shortens_the_local_window(images):
    whole = backbone_of()
    cache = whole.new_cache()
    slide(whole, images, [(0, 1)], cache)
    frame = cache.mib / 2
    limit = 1
    backbone = backbone_of(memory=limit)
    cache = backbone.new_cache()
    fits = int(limit / frame)
    locals_ = []
    for i in range(40):
        slide(backbone, images[np.arange(42) % 22], [(0, 1) if i == 0 else (i, i + 1)], cache)
        locals_.append(len(cache.state.local))
        assert cache.mib <= limit == cache.most_mib
    assert 5 < max(locals_) <= fits and locals_[-1] <= max(locals_)
    # where the trajectory alone fills it, the stream begins again
    restarts, bound = cache.restarts, dataclasses.replace(backbone.stream, memory=1)
    cache.state = dataclasses.replace(cache.state, camera={(0, 0): (torch.zeros(1, 1, 2**18, 1),) * 2}, local=())
    assert (
        cache.passes([(41, "camera"), (42, "camera")], (56, 70), bound) == [[0, 1]] and cache.restarts == restarts + 1
    )


def test_what_a_stream_keeps_is_known_before_it_begins(images):
    backbone = backbone_of(window=4, most=30)
    cache = backbone.new_cache()
    slide(backbone, images, [(0, 1, 2)], cache)
    assert lingbot.stream_mib(backbone.model.sizes, 20, 3, backbone.stream) == pytest.approx(cache.most_mib, rel=1e-6)


def test_the_doctor_tries_it():
    from come_ros.tools.doctor import trial

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("come_ros.backbones.load_backbone", lambda config: backbone_of())
        said = trial.measure(Config.from_flat({"window.size": 3, "window.overlap": 1}))
    assert said["size"] == "70x56" and said["stream_mib"] > 1


def test_a_bound_that_nothing_fits_into_is_said(images):
    backbone = backbone_of(memory=1)
    with pytest.raises(
        OutOfMemory, match=r"22 scale frames.* but stream\.memory is 1: raise it, or lower window\.size"
    ):
        slide(backbone, images.repeat(2, axis=1), [tuple(range(22))])


@pytest.mark.parametrize("fails", ["cancelled", "memory"])
def test_a_window_that_fails_leaves_all_as_it_was(images, fails):
    backbone = backbone_of(window=2)
    cache = backbone.new_cache()
    slide(backbone, images, [(0, 1, 2), (1, 2, 3, 4)], cache)
    before, seen = cache.state, len(cache)
    polls = iter(range(1000))
    if fails == "cancelled":  # within the second of three new frames
        with pytest.raises(Cancelled):
            backbone.predict(images[3:8], lambda: next(polls) > 20, step=step(range(3, 8), cache))
        assert next(polls) > 20
    else:
        download, calls = backbone.download, iter(range(10))

        def short(*more):
            if next(calls) == 1:
                raise OutOfMemory("full")
            return download(*more)

        backbone.download = short
        with pytest.raises(OutOfMemory):
            backbone.predict(images[3:8], step=step(range(3, 8), cache))
        backbone.download = download
    assert cache.state is before and len(cache) == seen
    after = slide(backbone, images, [(3, 4, 5)], cache)[0]
    fresh = slide(backbone, images, [(0, 1, 2), (1, 2, 3, 4), (3, 4, 5)])[-1]
    assert same(after, fresh)


def test_a_window_may_be_shortened_and_lengthened_while_it_runs(images):
    backbone = backbone_of(window=4)
    cache = backbone.new_cache()
    slide(backbone, images, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)], cache)
    assert len(cache.state.local) == 4
    shorter = backbone.configured(Config.from_flat({"stream.window": 2}))
    assert shorter is not backbone and shorter.model is backbone.model
    slide(shorter, images, [(5, 6)], cache)
    assert len(cache.state.local) == 2 and cache.restarts == 1
    slide(backbone, images, [(6, 7), (7, 8), (8, 9)], cache)
    assert len(cache.state.local) == 4


def test_merged_tokens_are_kept_merged_with_what_they_count_for(images):
    dense, merged = backbone_of(window=3), backbone_of(come(0.5), window=3)
    caches = [b.new_cache() for b in (dense, merged)]
    windows = [(0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (4, 5, 6), (5, 6, 7)]
    outs = [slide(b, images, windows, c) for b, c in zip((dense, merged), caches, strict=True)]
    assert caches[1].mib < 0.85 * caches[0].mib
    assert outs[1][-1].kept_ratio < 0.8 and np.isfinite(outs[1][-1].depth).all() and outs[1][-1].merged.any()
    weight = caches[1].state.local[-1].weight
    assert weight.sum() == 6 + 20  # every patch counts, in the frame itself and for those that come


def test_a_recorded_encoder_gives_the_same_stream(images, monkeypatch):
    """As with CUDA graphs; the trunk of a stream, whose lengths grow, is not recorded."""
    windows = [(0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5)]
    plain, recorded = backbone_of(window=2), graphed(backbone_of(window=2), monkeypatch)
    for a, b in zip(slide(plain, images, windows), slide(recorded, images, windows), strict=True):
        assert same(a, b)
    (graphs,) = CountedGraphs.all
    assert set(graphs.recorded) == {"_encode_now"} and graphs.replayed
    assert plain.description["encoder_cache"] == "off: a stream runs each frame once"


def test_merging_nothing_changes_no_bit(images):
    windows = [(0, 1, 2), (1, 2, 3), (2, 3, 4, 5)]
    for a, b in zip(slide(backbone_of(), images, windows), slide(backbone_of(come(0.0)), images, windows), strict=True):
        assert same(a, b)


def test_equal_patches_may_be_merged_without_any_change(monkeypatch):
    """A kept key of weight n counts like n equal keys, also for frames that come later."""
    flat = np.full((5, 56, 70, 3), 90, np.uint8)
    model = tiny("lingbot")
    torch.nn.init.zeros_(model.aggregator.patch_embed.pos_embed)
    for module, name in ((lingbot, "turns"), (layered, "rotary")):  # then patches of one colour are equal
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda at, *more, plain=plain: plain(torch.zeros_like(at), *more))
    outs = []
    for accelerator in (NoAccelerator(), come(1.0)):
        backbone = TorchBackbone("lingbot", model, accelerator, device="cpu", stream=StreamParameters(window=2))
        outs.append(slide(backbone, flat, [(0, 1), (1, 2), (2, 3), (3, 4)])[-1])
    assert outs[1].kept_ratio <= 0.4
    np.testing.assert_allclose(outs[1].window_from_camera, outs[0].window_from_camera, atol=2e-5)
    np.testing.assert_allclose(outs[1].depth, outs[0].depth, rtol=2e-4)


def test_what_does_not_go_together_is_said(images):
    with pytest.raises(
        ConfigError, match="temporal, which chooses whose keys are read across frames, but lingbot is a stream"
    ):
        backbone_of(Temporal(ratio=0.5))
    with pytest.raises(TypeError, match="needs one of its own"):
        backbone_of().predict(images[:2], step=step((0, 1), EncoderCache()))
