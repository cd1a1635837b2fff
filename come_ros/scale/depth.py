"""Metres from a depth sensor: the ratio of its depth to the model's at the same pixels, some of which are enough."""

from __future__ import annotations

from collections import Counter

import numpy as np

from ..alignment import weighted_median
from ..camera.preprocess import cover, crop_depth
from ..geometry import SIGMA_OF_MAD
from ..types import F32
from .reading import Reading, Readings, Seen

MIN_PIXELS = 20
SAME_SHAPE = 0.02  # tolerance of width / height
# The model's depth errs alike over whole surfaces: however many pixels, there are not more independent ones than that
INDEPENDENT = 12
FAR_M, NEAR_M = 100.0, 0.05  # medians of depth images beyond are of another unit


def implausible(depth: F32) -> str:
    """Why a depth image (H, W), 0 or NaN where nothing was measured, is not in metres, "" if it may be."""
    known = depth[np.isfinite(depth) & (depth > 0)]
    if not known.size:
        return "no depth"
    median = float(np.median(known))
    some = known[:: max(1, known.size // 10_000)]
    whole = median > 10 and len(np.unique(some)) > 3 and np.array_equal(some, np.rint(some))
    return "" if NEAR_M <= median <= FAR_M and not whole else "depth not in metres"


def read_depth(seen: Seen) -> Readings:
    """One reading for each frame with a depth image in `Frame.depth`."""
    readings, left_out = [], Counter[str]()
    for frame, plan, ours in zip(seen.frames, seen.plans, seen.depth, strict=True):
        if frame.depth is None:
            left_out["no depth"] += 1
            continue
        (height, width), (h, w) = frame.depth.shape, frame.image.shape[:2]
        if abs(width * h - w * height) > SAME_SHAPE * width * h:
            left_out["depth of another shape"] += 1
            continue
        if (height, width) != (h, w):
            plan = cover(width, height, plan.width, plan.height)
        if why := implausible(frame.depth):
            left_out[why] += 1
            continue
        real = crop_depth(frame.depth, plan)
        with np.errstate(invalid="ignore"):
            both = np.isfinite(real) & (real > 0) & np.isfinite(ours) & (ours > 0)
        count = int(np.count_nonzero(both))
        if count < MIN_PIXELS:
            left_out["too few pixels"] += 1
            continue
        ratios = np.log(real[both].astype(np.float64)) - np.log(ours[both].astype(np.float64))
        middle = float(np.median(ratios))
        spread = SIGMA_OF_MAD * weighted_median(np.abs(ratios - middle), np.ones(count))
        readings.append(Reading(frame.stamp_ns, middle, 1.25 * spread / np.sqrt(min(count, INDEPENDENT))))
    return Readings(tuple(readings), left_out)
