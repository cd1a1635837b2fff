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


@dataclass(frozen=True, eq=False)
class ThinMargins:
    """How far each pixel lies behind the middle between structure and background, in log depth: below 0 it is classified as structure,
    and a missing estimate is inf. structure, ring: (n,) float64, of thin pixels and of the other pixels that count."""

    structure: np.ndarray
    ring: np.ndarray


def thin_pixels(truth: np.ndarray, background: np.ndarray) -> np.ndarray:
    """(S, H, W) bool: the truth is in front of the background, by a step that counts."""
    found: np.ndarray = (background > LEAST_STEP * truth) & np.isfinite(truth)
    return found


def thin_margins(
    depth: np.ndarray, truth: np.ndarray, background: np.ndarray, scale: float, ring_px: int = RING_PX
) -> ThinMargins:
    """depth: (S, H, W), to be multiplied by `scale`. truth: with the structures. background: (S, H, W) without them.

    A pixel is thin where the truth is in front of the background. Only steps of LEAST_STEP count. In the ring the structure's depth is
    that of the nearest thin pixel.
    """
    from scipy.ndimage import distance_transform_edt

    thin = thin_pixels(truth, background)
    good = np.isfinite(depth) & (depth > 0)
    logs = np.where(good, np.log(np.where(good, depth, 1.0) * scale), np.inf)
    of_structure, of_ring = [np.zeros(0)], [np.zeros(0)]
    for frame in range(len(truth)):
        if not thin[frame].any():
            continue
        away, (row, column) = distance_transform_edt(~thin[frame], return_indices=True)
        structure = truth[frame][row, column]
        behind = np.where(thin[frame], background[frame], truth[frame])
        # other occluders in front of the structure are neither: `behind` is nearer there, and the pixel is not counted
        asked = (away <= ring_px) & (behind > LEAST_STEP * structure)
        margin = logs[frame] - 0.5 * (np.log(structure) + np.log(np.where(asked, behind, 1.0)))
        of_structure.append(margin[thin[frame]])
        of_ring.append(margin[asked & ~thin[frame]])
    return ThinMargins(np.concatenate(of_structure), np.concatenate(of_ring))


def thin_errors(
    depth: np.ndarray, truth: np.ndarray, background: np.ndarray, scale: float, ring_px: int = RING_PX
) -> ThinErrors:
    """As thin_margins. A missing estimate is no structure. No thin pixel: NaN."""
    margins = thin_margins(depth, truth, background, scale, ring_px)
    counted = len(margins.structure)
    if not counted:
        return ThinErrors(*(float("nan"),) * 4, 0)
    right = int((margins.structure < 0).sum())
    said = right + int((margins.ring < 0).sum())
    precision, recall = right / said if said else 0.0, right / counted
    f1 = 2 * right / (said + counted)
    good = np.isfinite(depth) & (depth > 0)
    off = np.where(good, np.abs(np.where(good, depth, 0.0) * scale / truth - 1), 1.0)
    return ThinErrors(precision, recall, f1, float(off[thin_pixels(truth, background)].mean()), counted)
