"""How long the odometry's unit was at each keyframe, by all that was measured since: what takes the drift of scale out of the map."""

from __future__ import annotations

import numpy as np

from ..types import F64

DRIFT = 0.02  # sigma of the logarithm by which the unit moves from keyframe to keyframe of the map
LEAST_CHANGE = 0.01  # of a keyframe's logarithm, that the map is moved for


def smoothed(log_lengths: F64, sigmas: F64, drift: float = DRIFT) -> F64:
    """(K,) logarithms of the unit's length at K keyframes, by the running estimates (K,) there, NaN while unknown, and their sigmas.

    The estimates are those of a filter, which knew the past: this is its smoother, which knows the future as well (Rauch, Tung and
    Striebel, AIAA J. 1965, for a random walk). Before the first estimate the length is that one; all 0 if there is none.
    """
    known = np.flatnonzero(np.isfinite(log_lengths))
    if not len(known):
        return np.zeros(len(log_lengths))
    out = np.empty(len(log_lengths))
    out[known[-1] :] = log_lengths[known[-1]]
    for k in range(known[-1] - 1, -1, -1):
        if not np.isfinite(log_lengths[k]):
            out[k] = out[k + 1]
            continue
        share = sigmas[k] ** 2 / (sigmas[k] ** 2 + drift**2)
        out[k] = log_lengths[k] + share * (out[k + 1] - log_lengths[k])
    return out
