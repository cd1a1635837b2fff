"""Smooth corrections of a network's depth: its logarithm plus a few terms of low order over the image and over the depth itself.

log corrected = log depth + c_0 + c_1 x + c_2 y + c_3 (x^2 - 1/3) + c_4 x y + c_5 (y^2 - 1/3) + c_6 (log depth - log median), with x and y
from -1 to 1 across the image. The first term is the scale; the last one stretches depth, since networks place far things too near.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..camera.preprocess import CropResize
from ..geometry import SIGMA_OF_MAD
from ..types import F32, F64

TERMS = 7
GRID = 24  # points along the longer side at which two depths of one image are compared
FIT_STEPS = 8  # steps of reweighting
LEAST_SPREAD = 0.01
MOST_STRETCH = 0.8  # below 1, so that the order of depths is kept


@dataclass(frozen=True, eq=False)
class DepthImage:
    """Depth of a camera's image. depth: (H, W) float32 from the network, NaN where invalid. plan: how the image was cropped for the
    network. log_median: logarithm of the median depth."""

    depth: F32
    plan: CropResize
    log_median: float

    @staticmethod
    def of(depth: F32, plan: CropResize) -> DepthImage:
        some = depth[1::3, 1::3]
        some = some[np.isfinite(some) & (some > 0)]
        return DepthImage(depth, plan, float(np.log(np.median(some))) if len(some) else 0.0)

    def at(self, pixels: F64) -> tuple[F64, F64]:
        """Logarithm of the depth (n,) at pixels (n, 2) of the camera's image, NaN where unknown, and the terms (n, TERMS) there."""
        plan = self.plan
        place = (pixels + 0.5 - [plan.left, plan.top]) * plan.scale - 0.5
        column, row = np.rint(place).astype(np.intp).T if len(place) else np.zeros((2, 0), np.intp)
        height, width = self.depth.shape
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        column, row = np.clip(column, 0, width - 1), np.clip(row, 0, height - 1)
        log_depth = _log(np.where(inside, self.depth[row, column], np.nan))
        return log_depth, self._terms(column, row, log_depth)

    def corrected(self, correction: F64) -> F32:
        """The depth (H, W) with a correction (TERMS,) applied. The last term is clipped so that nearer things stay nearer."""
        height, width = self.depth.shape
        x, y = (2.0 * np.arange(n) / max(1, n - 1) - 1 for n in (width, height))
        c = limited(correction)
        # as an outer sum, which takes three products over the whole image instead of seven
        along_x, along_y = c[1] * x + c[3] * (x * x - 1 / 3), c[2] * y + c[5] * (y * y - 1 / 3)
        field = along_y[:, None] + along_x[None, :] + c[4] * y[:, None] * x[None, :]
        field += c[0] - c[6] * self.log_median
        with np.errstate(invalid="ignore", divide="ignore"):
            log_depth = np.log(self.depth)
            return np.asarray(np.exp((1 + np.float32(c[6])) * log_depth + field.astype(np.float32)), np.float32)

    def grid(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Columns and rows (n,) of evenly spaced pixels."""
        height, width = self.depth.shape
        step = max(1, max(height, width) // GRID)
        row, column = np.mgrid[step // 2 : height : step, step // 2 : width : step]
        return column.ravel(), row.ravel()

    def on_grid(self) -> F64:
        """Logarithm of the depth (n,) at the pixels of `grid`, NaN where unknown."""
        column, row = self.grid()
        return _log(self.depth[row, column])

    def around(self, pixels: F64, values: F64, reach: float) -> F32:
        """(H, W) field that has `values` (n,), 1 or more, at pixels (n, 2) of the camera's image and fades to 1 around them. reach: of
        the fading, in image widths."""
        height, width = self.depth.shape
        cell = max(1, round(reach * width / 2))
        rows, columns = -(-height // cell), -(-width // cell)
        plan = self.plan
        place = ((pixels + 0.5 - [plan.left, plan.top]) * plan.scale - 0.5) / cell
        y, x = np.arange(rows)[:, None] + 0.5, np.arange(columns)[None, :] + 0.5
        coarse = np.ones((rows, columns))
        for (u, v), value in zip(place, values, strict=True):
            fade = np.exp(-0.5 * ((x - u) ** 2 + (y - v) ** 2))
            np.maximum(coarse, 1 + fade * (value - 1), out=coarse)
        whole = np.repeat(np.repeat(coarse, cell, axis=0), cell, axis=1)
        return np.asarray(whole[:height, :width], np.float32)

    def fit(self, log_target: F64, prior_sigma: F64) -> F64 | None:
        """Fits the correction (TERMS,) from this depth to another one, robustly. log_target: (n,) logarithm of the other depth at the
        pixels of `grid`. prior_sigma: (TERMS,) of the terms. None if the two depths overlap too little."""
        column, row = self.grid()
        if len(column) != len(log_target):
            return None
        log_depth = _log(self.depth[row, column])
        terms = self._terms(column, row, log_depth)
        off = log_target - log_depth
        good = np.isfinite(off)
        if np.count_nonzero(good) < 4 * TERMS:
            return None
        terms, off = terms[good], off[good]
        c = np.zeros(TERMS)
        c[0] = np.median(off)
        for _ in range(FIT_STEPS):
            residual = off - terms @ c
            sigma = max(LEAST_SPREAD, SIGMA_OF_MAD * float(np.median(np.abs(residual))))
            weight = 1 / (1 + (residual / (2 * sigma)) ** 2)
            # errors of neighbouring pixels are correlated: all pixels together count as 30 independent ones
            weight *= 30.0 / len(off) / sigma**2
            hessian = np.einsum("n,ni,nj->ij", weight, terms, terms) + np.diag(prior_sigma**-2.0)
            c = np.linalg.solve(hessian, np.einsum("n,ni,n->i", weight, terms, off))
        return c

    def _terms(self, column: NDArray[np.intp], row: NDArray[np.intp], log_depth: F64) -> F64:
        height, width = self.depth.shape
        x, y = 2.0 * column / max(1, width - 1) - 1, 2.0 * row / max(1, height - 1) - 1
        stretch = np.nan_to_num(log_depth - self.log_median)
        return np.stack([np.ones(len(x)), x, y, x * x - 1 / 3, x * y, y * y - 1 / 3, stretch], axis=1)


def carried(fit: F64, evidence: float) -> F64:
    """The correction (TERMS,) of a new depth of a published image, as far as landmarks support the published one. fit: (TERMS,), from the
    new depth to the published one. evidence: from 0, when no landmark supports the published depth, to 1.

    Without landmarks both are predictions of the network and count alike; with enough of them the published one counts alone. If it
    always did, the differences between the errors of one image and of the next would add up along a recording. The scale is the
    odometry's unit, so it is carried on in any case."""
    out = np.array(fit, np.float64)
    out[1:] *= (1 + evidence) / 2
    return out


def limited(correction: F64) -> F64:
    """The correction (TERMS,) with the stretch clipped to its bounds."""
    c = np.array(correction, np.float64)
    c[6] = np.clip(c[6], -MOST_STRETCH, MOST_STRETCH)
    return c


def _log(depth: NDArray[np.floating]) -> F64:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(depth > 0, np.log(depth, dtype=np.float64), np.nan), np.float64)
