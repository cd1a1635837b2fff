"""Training of causal models: a whole stream in one pass equals the same stream frame by frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import ROUNDING, bundled_as_stream, tiny

from come_ros.accelerators import NoAccelerator
from come_ros.backbones.stream import Step
from come_ros.backbones.torch_backbone import TorchBackbone
from come_ros.config_groups import StreamParameters
from come_ros.kernels import KeyWeights
from come_ros.training.losses import attention_loss
from come_ros.training.whole_stream import WholePass

FRAMES = 9


@pytest.fixture(scope="module")
def images():
    blocks = np.random.default_rng(1).integers(0, 256, (FRAMES, 4, 5, 3), np.uint8)
    return blocks.repeat(14, axis=1).repeat(14, axis=2)  # (S, 56, 70, 3)


def frame_by_frame(model, images, scale_frames, window):
    """Depth, confidence and poses of all frames, as the pipeline gets them."""
    backbone = TorchBackbone("lingbot", model, NoAccelerator(), device="cpu", stream=StreamParameters(window=window))
    cache, parts = backbone.new_cache(), []
    for end in range(scale_frames, len(images) + 1):
        shown = range(max(0, end - scale_frames - 1), end)  # with a known frame it continues
        p = backbone.predict(images[list(shown)], step=Step(tuple((i, "") for i in shown), cache))
        parts.append((p.depth, p.confidence, p.window_from_camera[-len(p.depth) :]))
    assert cache.restarts == 1
    return [np.concatenate(x) for x in zip(*parts, strict=True)]


def at_once(model, images, stream):
    x = torch.from_numpy(images).permute(0, 3, 1, 2)[None].float() / 255
    with torch.inference_mode():
        out, _ = model(x, NoAccelerator(), ("camera", "depth"), stream=stream)
    return [out[n][0].numpy() for n in ("depth", "depth_conf", "world_from_camera")]


def furthest(ours, theirs):
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("scale_frames", "window"), [(3, 2), (1, 1), (4, 3), (2, 64)])
@pytest.mark.parametrize("kind", ["published", "bundled"])
def test_it_equals_frame_by_frame(images, kind, scale_frames, window):
    """With and without scale token and rotation by time."""
    model = tiny("lingbot") if kind == "published" else bundled_as_stream()
    height, width = (side // model.patch * model.patch for side in images.shape[1:3])
    images = images[:, :height, :width]
    want = frame_by_frame(model, images, scale_frames, window)
    assert furthest(at_once(model, images, WholePass(FRAMES, scale_frames, window)), want) < 4 * ROUNDING
    # and what the mask hides matters
    other = WholePass(FRAMES, scale_frames, window + 1) if window < FRAMES else WholePass(FRAMES, scale_frames, 1)
    assert furthest(at_once(model, images, other), want) > 100 * ROUNDING
    assert furthest(at_once(model, images, None), want) > 100 * ROUNDING


def test_what_later_frames_hold_changes_no_earlier_one(images):
    """Frames after the scale frames are causal, in every head."""
    model = tiny("lingbot")
    other = images.copy()
    other[6:] = 255 - other[6:]
    a, b = (at_once(model, x, WholePass(FRAMES, 3, 2)) for x in (images, other))
    for ours, theirs in zip(a, b, strict=True):
        assert np.abs(ours[:6] - theirs[:6]).max() < ROUNDING * np.abs(ours).max()
        assert np.abs(ours[6:] - theirs[6:]).max() > 1e-3 * np.abs(ours).max()


def test_attention_is_taught_among_the_keys_that_are_read():
    """The match in the first frame is read by all; keys that a frame does not read are no alternatives to it."""
    stream = WholePass(3, 1, 1)
    stream.placed(torch.zeros(9, 2), 1, lambda *_: None)  # 3 frames of 1 special token and 2 patches
    keys, queries = torch.eye(9)[None, None] * 40, torch.zeros(1, 1, 9, 9)
    target, valid = torch.tensor([[[1, 0], [1, 0]]]), torch.tensor([[[False, False], [True, True]]])
    for token, match in ((7, 2), (8, 1)):
        queries[0, 0, token, match] = 1.0
    queries[0, 0, 7, 4] = 2.0  # a patch of the second frame, which has left the window
    losses = [attention_loss([(queries, keys)], 3, 1, target, valid, mask) for mask in (None, stream.mask)]
    assert losses[0] > 5 and losses[1] < 1e-3


def test_what_cannot_be_is_said(images):
    for wrong in ((4, 0, 2), (4, 5, 2), (4, 2, 0)):
        with pytest.raises(ValueError, match="take 1 to 4, and 1 or more"):
            WholePass(*wrong)
    stream, k = WholePass(2, 1, 1), torch.zeros(1, 1, 4, 2)
    with pytest.raises(ValueError, match="trained dense"):
        stream.recall(0, k, k, k, KeyWeights(torch.ones(1, 4)))
