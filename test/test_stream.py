"""Sliding windows: frames go through the encoder once, dense heads run where depth is wanted, and nothing else changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from accelerators.test_contract import VARIANTS, EverySiteIdentity, seeded
from fakes import TruthBackbone, trajectory, truth_of
from models import TINY, WIDTH, tiny

from come_ros.accelerators import CoMe, NoAccelerator
from come_ros.accelerators.confidence import ConfidencePredictor
from come_ros.backbones.stream import EncoderCache, Step
from come_ros.backbones.torch_backbone import TorchBackbone
from come_ros.config import Config
from come_ros.pipeline import ReconstructionPipeline

# frames of each window: strides 1, 3 and all; a window that grows, shrinks, and comes back to a frame that was given up
WINDOWS = [(0, 1, 2), (1, 2, 3), (1, 2, 3, 4), (4, 5, 6), (6, 7), (5, 6, 7, 8), (20, 21)]
NEW = [3, 1, 1, 2, 1, 2, 2]
WINDOWED = [name for name in sorted(TINY) if not tiny(name).causal]
"""models that see all frames of a window at once; for the others see test_causal.py"""


@pytest.fixture(scope="module")
def images():
    blocks = np.random.default_rng(1).integers(0, 256, (22, 4, 5, 3), np.uint8)
    return blocks.repeat(14, axis=1).repeat(14, axis=2)  # (S, 56, 70, 3)


def backbone_of(name="vggt", accelerator=None):
    return TorchBackbone(name, tiny(name), accelerator or NoAccelerator(), device="cpu")


def come(**more):
    return CoMe(seeded(lambda: ConfidencePredictor(WIDTH, 8, scope="frame")), 0, group=(2, 2), **more)


def step(frames, cache, dense=None):
    return Step(tuple((i, "camera") for i in frames), cache, dense)


def assert_near(ours, whole):
    """As near as products of matrices of other heights come on the CPU."""
    for name in ("depth", "confidence", "window_from_camera", "intrinsics"):
        np.testing.assert_allclose(getattr(ours, name), getattr(whole, name), rtol=2e-4, atol=1e-5, err_msg=name)
    if whole.merged is not None:
        np.testing.assert_array_equal(ours.merged, whole.merged)
    assert ours.kept_ratio == whole.kept_ratio


def slide(backbone, images, windows=WINDOWS):
    """(with what was kept, made again) of each window."""
    cache = EncoderCache()
    for frames in windows:
        some = images[list(frames)]
        yield backbone.predict(some, step=step(frames, cache)), backbone.predict(some)


@pytest.mark.parametrize("name", WINDOWED)
def test_what_is_kept_changes_nothing_of_the_dense_model(name, images):
    for (ours, whole), frames, new in zip(slide(backbone_of(name), images), WINDOWS, NEW, strict=True):
        assert_near(ours, whole)
        assert ours.reused == len(frames) - new and whole.reused == 0


EXACT = {
    **{n: make for n, make in VARIANTS.items() if "come" not in n},
    **{f"come {mode}": lambda mode=mode: come(mode=mode) for mode in ("fused", "per_layer")},
}


@pytest.mark.parametrize("name", sorted(EXACT))
def test_nor_of_accelerators_that_look_at_frames_one_by_one(name, images):
    backbone = backbone_of(accelerator=EXACT[name]())
    assert backbone.description["encoder_cache"] == "by frame"
    for ours, whole in slide(backbone, images, WINDOWS[:4]):
        assert_near(ours, whole)


@pytest.mark.parametrize("name", ["come", "come+good_token_hunting"])
def test_what_is_merged_in_a_frame_is_settled_when_it_enters(name, images):
    backbone = backbone_of(accelerator=VARIANTS[name]())  # its predictor looks at the whole window
    merged: dict[int, np.ndarray] = {}
    for (ours, whole), frames in zip(slide(backbone, images, WINDOWS[:5]), WINDOWS, strict=False):
        for i, mask in zip(frames, ours.merged, strict=True):
            np.testing.assert_array_equal(mask, merged.setdefault(i, mask))
        assert ours.kept_ratio == whole.kept_ratio and ours.merged.sum() == whole.merged.sum()
        assert np.isfinite(ours.depth).all()


def test_the_encoder_sees_new_frames_only(images):
    backbone, sizes = backbone_of(), []

    class Look(NoAccelerator):
        def attend(self, q, k, v, plan, layer):
            sizes.append((layer.part, len(q)))
            return super().attend(q, k, v, plan, layer)

    backbone.accelerator = Look()
    for _ in slide(backbone, images, WINDOWS[:2]):
        pass
    in_encoder = [rows for part, rows in sizes if part == "encoder"]
    assert in_encoder == [3, 3, 3, 3, 1, 1, 3, 3]  # two blocks: kept, again, kept, again


@pytest.mark.parametrize("accelerator", [EverySiteIdentity(), come(budget="window")], ids=["unknown", "window"])
def test_plans_that_cannot_be_told_apart_are_made_again_and_it_is_said(accelerator, images):
    backbone = backbone_of(accelerator=accelerator)
    assert backbone.description["encoder_cache"].startswith("off: ")
    for ours, whole in slide(backbone, images, WINDOWS[:3]):
        assert ours.reused == 0
        np.testing.assert_array_equal(ours.depth, whole.depth)


def test_another_size_or_accelerator_gives_up_what_was_kept(images):
    backbone, cache, frames = backbone_of(accelerator=come(ratio=0.5)), EncoderCache(), (0, 1, 2)
    some = images[list(frames)]

    def reused(images=some):
        return backbone.predict(images, step=step(frames, cache)).reused

    assert [reused(), reused()] == [0, 3]
    assert [reused(some[:, :42]), reused(some[:, :42]), reused()] == [0, 3, 0]
    backbone = backbone.configured(Config.from_flat({"accelerator.name": "come"}))  # another group
    assert [reused(), reused(), len(cache)] == [0, 3, 3]
    cache.clear()
    assert [reused(), cache.reused, cache.encoded] == [0, 9, 15]
    assert cache.encoder_ms > 0


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("dense", [(3,), (0, 2, 3), (1, 2), tuple(range(4))], ids=str)
def test_depth_of_some_frames_is_that_of_all(name, dense, images):
    backbone, some = backbone_of(name), images[:4]
    whole, ours = backbone.predict(some), backbone.predict(some, step=step(range(4), None, dense))
    assert ours.dense == dense and [ours.row(i) for i in dense] == list(range(len(dense)))
    assert all(ours.row(i) is None for i in set(range(4)) - set(dense))
    rows = list(dense)
    cut = dataclasses.replace(whole, depth=whole.depth[rows], confidence=whole.confidence[rows])
    cut = dataclasses.replace(cut, intrinsics=whole.intrinsics[rows])
    assert_near(dataclasses.replace(ours, intrinsics=ours.intrinsics[rows]), cut)
    if whole.meaningful is not None:
        np.testing.assert_array_equal(ours.meaningful, whole.meaningful[rows])


# The pipeline

TRUTH = truth_of(trajectory("curve", 24))


def config_of(**more):
    flat = {"keyframe.mode": "every", "window.size": 4, "window.overlap": 3}
    return Config.from_flat({**flat, **{k.replace("__", "."): v for k, v in more.items()}})


@pytest.mark.parametrize(("overlap", "share"), [(3, 0.75), (1, 0.25)])
def test_a_pipeline_gives_the_same_submaps_with_and_without(overlap, share):
    frames = TRUTH.frames()[:10]

    def submaps(**more):
        pipeline = ReconstructionPipeline(config_of(window__overlap=overlap, **more), backbone_of())
        return list(pipeline.run(frames)), pipeline

    (ours, kept), (whole, again) = submaps(), submaps(window__reuse=False)
    assert [len(s) for s in ours] == [len(s) for s in whole] and len(ours) >= 3
    for a, b in zip(ours, whole, strict=True):
        assert a.alignment.accepted == b.alignment.accepted
        np.testing.assert_allclose(a.depth, b.depth, rtol=1e-3)
        np.testing.assert_allclose(a.odom_from_camera, b.odom_from_camera, rtol=1e-3, atol=1e-4)
    assert [s.reused for s in ours[:3]] == [0, share, share]
    assert ours[1].saved_ms > 0 and all(s.reused == s.saved_ms == 0 for s in whole)
    assert len(kept._frame_cache) == 4 and len(again._frame_cache) == 0


def test_reset_jumps_and_reuse_switched_off_forget_what_was_kept():
    frames = TRUTH.frames()

    def fed(how):
        pipeline = ReconstructionPipeline(config_of(on_time_jump=how), backbone_of())
        list(pipeline.run(frames[10:15]))
        assert len(pipeline._frame_cache) == 4
        return pipeline

    for how in ("reset", "keep_pose"):
        pipeline = fed(how)
        # other images under known stamps: those of before must not count
        again = [dataclasses.replace(f, image=255 - f.image) for f in frames[10:14]]
        pipeline.add_frame(dataclasses.replace(again[0], stamp_ns=frames[0].stamp_ns))
        assert len(pipeline._frame_cache) == 0
    pipeline = fed("reset")
    pipeline.reset()
    assert len(pipeline._frame_cache) == 0
    pipeline = fed("reset")
    pipeline.set_config(config_of(window__reuse=False))
    list(pipeline.run(frames[15:17]))
    assert len(pipeline._frame_cache) == 0


class Streaming(TruthBackbone):
    """One that makes depth only where it is asked for."""

    streams = True

    def __init__(self, truth, **more):
        super().__init__(truth, **more)
        self.steps = []

    def predict(self, images, stop=None, known=None, step=None):
        self.steps.append(step)
        out = super().predict(images, stop)
        if step.dense is None:
            return out
        rows = list(step.dense)
        intrinsics = np.full_like(out.intrinsics, np.nan)  # fitted to pixels
        intrinsics[rows] = out.intrinsics[rows]
        return dataclasses.replace(
            out, depth=out.depth[rows], confidence=out.confidence[rows], intrinsics=intrinsics, dense=step.dense
        )


@pytest.mark.parametrize("anchors", [0, 1, 2, 3])
def test_anchors_carry_pose_and_scale_on(anchors):
    backbone = Streaming(TRUTH)
    pipeline = ReconstructionPipeline(config_of(window__anchors=anchors), backbone)
    submaps = list(pipeline.run(TRUTH.frames()))
    assert all(s.alignment.accepted for s in submaps) and sum(map(len, submaps)) == len(TRUTH)
    wanted = {0: None, 1: (2, 3), 2: (1, 2, 3), 3: None}[anchors]  # three are shared
    assert [s.dense for s in backbone.steps] == [None, *[wanted] * (len(submaps) - 1)]
    poses = np.concatenate([s.odom_from_camera for s in submaps])
    scale = np.linalg.norm(poses[1, :3, 3] - poses[0, :3, 3]) / np.linalg.norm(
        TRUTH.world_from_camera[1, :3, 3] - TRUTH.world_from_camera[0, :3, 3]
    )
    for i in range(1, len(TRUTH)):
        way = np.linalg.norm(poses[i, :3, 3] - poses[0, :3, 3])
        true = np.linalg.norm(TRUTH.world_from_camera[i, :3, 3] - TRUTH.world_from_camera[0, :3, 3])
        assert way == pytest.approx(scale * true, rel=1e-3, abs=1e-6)


def test_memory_is_freed_before_a_window_is_tried_again():
    from come_ros.errors import OutOfMemory

    backbone = backbone_of()
    pipeline = ReconstructionPipeline(config_of(), backbone)
    frames = iter(TRUTH.frames())
    windows = pipeline.run(frames)
    next(windows), next(windows)
    predict, held = backbone.predict, []

    def short_of_memory(images, *more):
        held.append(len(pipeline._frame_cache))
        if len(held) == 1:
            raise OutOfMemory("full")
        return predict(images, *more)

    backbone.predict = short_of_memory
    submap = next(windows)
    assert held == [4, 0] and submap.reused == 0 and len(submap) == 1


def test_nothing_is_kept_of_a_window_that_was_given_up(images):
    from come_ros.errors import Cancelled

    backbone, cache = backbone_of(), EncoderCache()
    with pytest.raises(Cancelled):
        backbone.predict(images[:3], lambda: True, step=step(range(3), cache))
    assert len(cache) == 0 and torch.is_inference_mode_enabled() is False
    assert backbone.predict(images[:3], step=step(range(3), cache)).reused == 0
