"""Whether thin structures survive: poles, wires, legs and bars. The scene is known with and without them.

Each pixel is classified by the nearer of two depths (in log depth): that of the structure and that of the background.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RING_PX = 7  # about a structure: half a patch of 14 px
LEAST_STEP = 1.1  # structure and background must differ by this ratio to be distinguished


@dataclass(frozen=True)
class ThinErrors:
    """precision, recall, f1: of the class "structure" on thin pixels and in the ring around them. abs_rel: on thin pixels, after the
    window's scale. pixels: thin ones that count."""

    precision: float
    recall: float
    f1: float
    abs_rel: float
    pixels: int


def thin_errors(
    depth: np.ndarray, truth: np.ndarray, background: np.ndarray, scale: float, ring_px: int = RING_PX
) -> ThinErrors:
    """depth: (S, H, W), to be multiplied by `scale`. truth: with the structures. background: (S, H, W) without them.

    A pixel is thin where the truth is in front of the background. Only steps of LEAST_STEP count. In the ring the structure's depth is
    that of the nearest thin pixel. A missing estimate is no structure. No thin pixel: NaN.
    """
    from scipy.ndimage import distance_transform_edt

    thin = (background > LEAST_STEP * truth) & np.isfinite(truth)
    counted, said, right = int(thin.sum()), 0, 0
    if not counted:
        return ThinErrors(*(float("nan"),) * 4, 0)
    good = np.isfinite(depth) & (depth > 0)
    logs = np.log(np.where(good, depth, 1.0) * scale)
    for frame in range(len(truth)):
        if not thin[frame].any():
            continue
        away, (row, column) = distance_transform_edt(~thin[frame], return_indices=True)
        structure = truth[frame][row, column]
        behind = np.where(thin[frame], background[frame], truth[frame])
        asked = (away <= ring_px) & (behind > LEAST_STEP * structure)
        # other occluders in front of the structure are neither: `behind` is nearer there, and the pixel is not counted
        answer = good[frame] & (logs[frame] < 0.5 * (np.log(structure) + np.log(np.where(asked, behind, 1.0))))
        said += int((answer & asked).sum())
        right += int((answer & thin[frame]).sum())
    precision, recall = right / said if said else 0.0, right / counted
    f1 = 2 * right / (said + counted)
    off = np.where(good, np.abs(np.where(good, depth, 0.0) * scale / truth - 1), 1.0)
    return ThinErrors(precision, recall, f1, float(off[thin].mean()), counted)
