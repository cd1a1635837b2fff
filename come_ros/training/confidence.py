"""Sets the confidence of a trained model's depth from errors that it was seen to make. Its depth stays the same to the last digit.

While a model is trained, its confidence learns from errors in the rooms that it trains on. There, what it sees tells it where it errs;
in photographs it hardly does (see README.md, "Confidence"). How errors depend on the place in the image transfers better. So this
measures errors on rooms, half of them with images unlike those that the model knows, and makes the confidence from the mean logarithm of
the error by place, and from a share of the model's own deviation from its mean by place. A constant makes the mean error as expected.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import progress
from ..accelerators import NoAccelerator
from ..backbones.heads import place_terms
from ..backbones.vggt import VGGT
from ..datasets.material import Material
from ..types import U8
from .motion_losses import OUTLIER
from .parallax import Mix, ParallaxStream

KEPT = 0.4
"""share of the model's own deviation; chosen on tum_fr3_cabinet and tum_fr1_rpy, where .3 to .5 make little difference"""
SAMPLED = 8  # px from one sample to the next
FLOOR = 0.02  # added to an error before its logarithm: smaller differences mean nothing
REUSE = 0.25  # how many times a rendered frame is used: errors by place differ more between rooms than between windows of one
SEED = 20_011
BINS = 5


class Samples(NamedTuple):
    """place: (N, 4) of 1 and place_terms. sureness: (N,) the raw confidence. error: (N,) absolute error of the log depth about the
    window's median. All float64."""

    place: NDArray[np.float64]
    sureness: NDArray[np.float64]
    error: NDArray[np.float64]


class Fit(NamedTuple):
    """The new raw confidence: kept * raw + offset + place . place_terms."""

    kept: float
    offset: float
    place: NDArray[np.float64]

    def __call__(self, samples: Samples) -> NDArray[np.float64]:
        """(N,)"""
        return self.kept * samples.sureness + self.offset + samples.place[:, 1:] @ self.place


def altered(images: U8, pictures: tuple[U8, ...], rng: np.random.Generator) -> U8:
    """Images (S, H, W, 3) of one window as the model does not know them: other light, colours permuted, inverted or removed, one of the
    pictures shining through, noise."""
    height, width = images.shape[1:3]
    x = images.astype(np.float32) / 255
    if rng.random() < 0.5:
        x = x[..., rng.permutation(3)]
    if rng.random() < 0.5:
        x = x ** np.float32(rng.uniform(0.5, 1.8))
    if rng.random() < 0.5:  # bright and dark regions
        light = rng.uniform(0.4, 1.4, (3, 4)).astype(np.float32)
        x = x * cv2.resize(light, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    if pictures and rng.random() < 0.5:
        picture = cv2.resize(pictures[rng.integers(len(pictures))], (width, height), interpolation=cv2.INTER_AREA)
        share = np.float32(rng.uniform(0.1, 0.4))
        x = (1 - share) * x + share * picture.astype(np.float32) / 255
    if rng.random() < 0.3:
        x = 1 - x
    if rng.random() < 0.3:
        x = np.repeat(x.mean(axis=-1, keepdims=True), 3, axis=-1)
    x = x + rng.normal(0, rng.uniform(0, 0.06), x.shape).astype(np.float32)
    return (255 * x.clip(0, 1)).astype(np.uint8)


def measure(model: VGGT, material: Material, windows: int, mix: Mix | None = None) -> Samples:
    """Errors of the model on that many windows of rooms, every other one with altered images. mix: how they are drawn, without panoramas,
    whose depth is unknown."""
    mix = dataclasses.replace(mix or Mix(pool=40, reuse=REUSE), panoramas=0.0)
    stream, rng = ParallaxStream(SEED, material, mix, model.patch), np.random.default_rng(SEED)
    device, found = next(model.parameters()).device, []
    batches = stream.batches(1, begin=min(12, mix.pool))
    for i in progress.bar(range(windows), desc="errors by place", unit="window"):
        batch = next(batches)
        images, depth = batch["images"][0].numpy(), batch["depth"][0]
        if i % 2:
            images = altered(images.transpose(0, 2, 3, 1), material.pictures, rng).transpose(0, 3, 1, 2)
        found.append(_samples(model, torch.from_numpy(np.ascontiguousarray(images)).to(device), depth.to(device)))
    return Samples(*(np.concatenate(column) for column in zip(*found, strict=True)))


@torch.inference_mode()
def _samples(model: VGGT, images: Tensor, depth: Tensor) -> Samples:
    """Of one window: images (S, 3, H, W) uint8, true depth (S, H, W)."""
    trunk = model.run_trunk(images[None].float() / 255, NoAccelerator())
    size = (images.shape[2], images.shape[3])
    raw = model.run_dense_head(model.depth_head, trunk, size, lambda: None)[0].float()
    off = raw[:, 0] - depth.clamp_min(1e-3).log()
    off = (off - off.median()).abs()
    some = slice(SAMPLED // 2, None, SAMPLED)
    terms = place_terms(*size, images.device)
    place = torch.cat((torch.ones_like(terms[:1]), terms))[None].expand(len(images), -1, -1, -1)
    columns = (
        place[..., some, some].movedim(1, -1).reshape(-1, 4),
        raw[:, 1, some, some].flatten(),
        off[:, some, some].flatten(),
    )
    return Samples(*(x.double().cpu().numpy() for x in columns))


def fit(samples: Samples, kept: float = KEPT) -> Fit:
    """kept: share of the deviation of the raw confidence from its mean by place that is kept."""
    by_place = np.linalg.lstsq(samples.place, -np.log(samples.error + FLOOR), rcond=None)[0]
    mean = np.linalg.lstsq(samples.place, samples.sureness, rcond=None)[0]
    weights = by_place - kept * mean
    rough = Fit(kept, float(weights[0]), weights[1:])
    # the most likely scale of a Laplace distribution is the mean of the absolute errors, here of those relative to the expected ones
    level = np.log(np.mean(samples.error.clip(max=OUTLIER) * np.exp(rough(samples))))
    return rough._replace(offset=rough.offset - float(level))


def applied(model: VGGT, found: Fit) -> VGGT:
    """A copy of the model with that confidence. A model that has been through this before keeps what it had by place, times `kept`."""
    sizes = dataclasses.replace(model.sizes, by_place=True)
    new = VGGT(sizes).to(next(model.parameters()).device)
    state = copy.deepcopy(model.state_dict())
    state.setdefault("depth_head.place", torch.zeros(3))
    new.load_state_dict(state)
    head = new.depth_head
    last, rows = head.scratch.output_conv2[2], head.shuffle**2
    with torch.no_grad():
        last.weight[-rows:] *= found.kept
        last.bias[-rows:] = last.bias[-rows:] * found.kept + found.offset
        assert head.place is not None
        head.place.copy_(found.kept * head.place + torch.from_numpy(found.place).to(head.place))
    return new.train(model.training)


def expected_and_actual(sureness: NDArray[np.float64], error: NDArray[np.float64]) -> list[tuple[float, float]]:
    """(mean expected, mean actual error) of equal parts of the samples, by falling confidence."""
    order = np.argsort(-sureness, kind="stable")
    parts: Iterable[NDArray[np.intp]] = np.array_split(order, BINS)
    return [(float(np.exp(-sureness[p]).mean()), float(error[p].mean())) for p in parts]


def set_by_errors(model: VGGT, material: Material, windows: int, mix: Mix | None = None) -> VGGT:
    """A copy of the model whose confidence follows from its errors on that many windows; prints what it found."""
    samples = measure(model.eval(), material, windows, mix)
    found = fit(samples)
    rows = " ".join(f"{a:.3f}/{b:.3f}" for a, b in expected_and_actual(found(samples), samples.error))
    print(f"confidence: expected/actual error of the log depth on {windows} windows, by falling confidence: {rows}")
    return applied(model, found)
