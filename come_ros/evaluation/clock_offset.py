"""Estimates the clock offset between a true path and the images from the speeds at which both turn and move, independent of scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..errors import DatasetError
from ..geometry import rotation_angle
from ..types import F64

LEAST_STEPS = 8  # between images, that lie within the true path
LEAST_CORRELATION = 0.5
LEAST_LEAD = 0.1  # of the best offset's correlation before all that are more than a second away
SAME_STAMP_NS = 2_000_000
_MOST_CANDIDATES = 200_000


class Offset(NamedTuple):
    """ns: to be added to the stamps of the true path. correlation: of the speeds of turning and moving there, 1 is perfect."""

    ns: int
    correlation: float


def find_offset(estimate: Mapping[int, F64], truth: Mapping[int, F64]) -> Offset:
    """estimate, truth: stamp in ns -> pose (4, 4), in any world and unit. Raises DatasetError if no offset stands out."""
    ours, theirs = sorted(estimate), sorted(truth)
    if len(ours) <= LEAST_STEPS or len(theirs) <= LEAST_STEPS:
        raise DatasetError(
            f"--gt-offset auto needs more than {LEAST_STEPS} poses on both sides: give the offset in seconds"
        )
    start, base = ours[0], theirs[0]
    t = np.array([(stamp - start) * 1e-9 for stamp in ours])
    u = np.array([(stamp - base) * 1e-9 for stamp in theirs])
    steps = np.diff(t)
    turned, moved = _steps(np.stack([estimate[stamp] for stamp in ours]))
    # the true path is sampled as coarsely as the images, so its noise does not add up
    some = _thinned(u, 0.5 * float(np.median(steps)))
    turns, moves = _steps(np.stack([truth[theirs[i]] for i in some]))
    at = u[some]
    sums = [np.concatenate([[0.0], np.cumsum(v)]) for v in (turns, moves)]
    rates = [turned / steps, moved / steps]

    def scores(offsets: F64) -> F64:
        """For images at t + offset on the clock of the true path."""
        first, last = t[:-1] + offsets[:, None], t[1:] + offsets[:, None]
        inside = (first >= 0) & (last <= u[-1])
        found = [
            _correlations(rate, (np.interp(last, at, total) - np.interp(first, at, total)) / steps, inside)
            for rate, total in zip(rates, sums, strict=True)
        ]
        enough = inside.sum(axis=1) >= max(LEAST_STEPS, len(steps) // 2)
        both = np.stack(found)
        known = np.isfinite(both)
        mean = np.where(known, both, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        return np.where(enough & known.any(axis=0), mean, -np.inf)

    def best_of(low: float, high: float, step: float) -> tuple[F64, F64]:
        count = int(min(_MOST_CANDIDATES, max(1, round((high - low) / step)))) + 1
        offsets = np.linspace(low, high, count)
        return offsets, np.concatenate([scores(part) for part in np.array_split(offsets, count // 256 + 1)])

    step = float(np.clip(np.median(steps) / 4, 0.002, 0.1))
    offsets, found = best_of(-t[-1], u[-1], step)
    best = int(np.argmax(found))
    if not np.isfinite(found[best]):
        raise DatasetError(
            "--gt-offset auto found no offset that stands out: at none do enough images lie within the true path, with speeds that vary "
            "on both sides; give the offset in seconds"
        )
    others = found[np.abs(offsets - offsets[best]) > max(1.0, 4 * step)]
    lead = found[best] - others.max(initial=-np.inf)  # infinite if there are no others
    if found[best] < LEAST_CORRELATION or lead < LEAST_LEAD:
        raise DatasetError(
            f"--gt-offset auto found no offset that stands out (best correlation {found[best]:.2f}, {lead:.2f} before others; "
            f"{LEAST_CORRELATION} and {LEAST_LEAD} are needed): give the offset in seconds"
        )
    fine, again = best_of(offsets[best] - step, offsets[best] + step, step / 20)
    at_best = int(np.argmax(again))
    offset = start - base - round(float(fine[at_best]) * 1e9)
    return Offset(offset + _onto_stamps(ours, theirs, offset), float(again[at_best]))


def _onto_stamps(ours: list[int], theirs: list[int], offset_ns: int) -> int:
    """Correction of an offset that makes the stamps coincide, if all differ by the same amount: true paths are often given at the
    stamps of the images. 0 otherwise."""
    moved = np.array([stamp + offset_ns - ours[0] for stamp in theirs])
    wanted = np.array([stamp - ours[0] for stamp in ours])
    right = np.clip(np.searchsorted(moved, wanted), 1, len(moved) - 1)
    near = np.where(wanted - moved[right - 1] < moved[right] - wanted, right - 1, right)
    off = (wanted - moved[near])[(wanted >= moved[0]) & (wanted <= moved[-1])]
    if not off.size:
        return 0
    middle = int(np.median(off))
    return middle if np.median(np.abs(off - middle)) < SAME_STAMP_NS else 0


def _steps(poses: F64) -> tuple[F64, F64]:
    """Angle (rad) and length from each pose to the next."""
    turned = rotation_angle(np.swapaxes(poses[:-1, :3, :3], -1, -2) @ poses[1:, :3, :3])
    return np.asarray(turned, np.float64), np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)


def _thinned(times: F64, spacing: float) -> list[int]:
    """Indices of times at least `spacing` apart, the first and about the last among them."""
    kept = [0]
    for i, time in enumerate(times):
        if time - times[kept[-1]] >= spacing:
            kept.append(i)
    return kept


def _correlations(ours: F64, theirs: F64, inside: np.ndarray) -> F64:
    """Pearson's, of each row of theirs (n, k) where `inside` with ours (k,); NaN where one of the two does not vary."""
    count = np.maximum(inside.sum(axis=1, keepdims=True), 1)

    def centred(values: F64) -> F64:
        values = np.where(inside, values, 0)
        return np.where(inside, values - values.sum(axis=1, keepdims=True) / count, 0)

    a, b = centred(np.broadcast_to(ours, theirs.shape)), centred(theirs)
    norm = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(norm > 1e-12, (a * b).sum(axis=1) / norm, np.nan)
