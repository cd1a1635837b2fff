"""Errors of depth maps: AbsRel, RMSE, log-RMSE and delta < 1.25 as in Eigen et al., NeurIPS 2014; SSIM as in Wang et al., TIP 2004.

The model's scale is arbitrary, so depth is first scaled by the median ratio (Zhou et al., CVPR 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EDGE_RATIO = 1.1
EDGE_REACH = 2
MISSING_LOG_ERROR = 1.0  # of a pixel without an estimate: a factor of e


@dataclass(frozen=True)
class DepthErrors:
    """abs_rel: mean |d - d*| / d*. delta: share of pixels with max(d/d*, d*/d) < 1.25. pixels: how many were compared. rmse: root mean
    square of d - d*, in the truth's unit. log_rmse: the same of log d - log d*."""

    abs_rel: float
    delta: float
    pixels: int
    rmse: float = float("nan")
    log_rmse: float = float("nan")


def depth_scale(depth: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """median(truth / depth) over the pixels where both are finite and positive; NaN if there are none."""
    depth, truth, good = _comparable(depth, truth, mask)
    return float(np.median(truth[good] / depth[good])) if good.any() else float("nan")


def depth_errors(
    depth: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None, scale: float | None = None
) -> DepthErrors:
    """Errors of `depth` after scaling it by `scale`, or by None: median(truth / depth); arrays of one shape, any unit.

    Pixels count where the truth is finite and > 0 (and `mask`, if given). A pixel without a finite positive estimate counts as wrong:
    delta 0, AbsRel 1, RMSE as a depth of 0, log-RMSE as MISSING_LOG_ERROR, so a method cannot win by leaving pixels out. No
    comparable pixel: NaN errors.
    """
    depth, truth, good = _comparable(depth, truth, mask)
    if not good.any():
        return DepthErrors(float("nan"), float("nan"), int(truth.size))
    if scale is None:
        scale = float(np.median(truth[good] / depth[good]))
    scaled = np.where(good, depth * scale, 0.0)
    ratio = np.full(truth.shape, np.inf)
    ratio[good] = scaled[good] / truth[good]
    error = np.where(good, np.abs(ratio - 1), 1.0)
    logs = np.full(truth.shape, MISSING_LOG_ERROR)
    logs[good] = np.log(ratio[good])
    return DepthErrors(
        float(error.mean()), float((np.maximum(ratio, 1 / ratio) < 1.25).mean()), int(truth.size),
        float(np.sqrt(np.mean((scaled - truth) ** 2))), float(np.sqrt(np.mean(logs**2))),
    )  # fmt: skip


class RatioHistogram:
    """Depth errors of a whole sequence under one scale, in memory that does not grow with it.

    AbsRel and delta depend only on depth / truth, so its logarithm is counted in bins of `WIDTH`; each bin is represented by its
    mean, so the scale is exact to WIDTH / 2 (relative) and the errors to less. RMSE needs sums of products.
    """

    WIDTH = 1e-4
    REACH = 12.0  # ratios beyond a factor of 160 000 are clamped

    def __init__(self) -> None:
        bins = 2 * round(self.REACH / self.WIDTH) + 1
        self._counts = np.zeros(bins, np.int64)
        self._sums = np.zeros(bins)
        self._products = np.zeros(3)  # sums of depth^2, depth truth, truth^2
        self._missing = 0

    def add(self, depth: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Pixels of one frame; which of them count is described in `depth_errors`."""
        depth, truth, good = _comparable(depth, truth, mask)
        d, t = depth[good], truth[good]
        logs = np.clip(np.log(d / t), -self.REACH, self.REACH)
        index = np.rint((logs + self.REACH) / self.WIDTH).astype(np.int64)
        if len(index):
            first = int(index.min())
            touched = slice(first, int(index.max()) + 1)  # a small part of all bins
            self._counts[touched] += np.bincount(index - first)
            self._sums[touched] += np.bincount(index - first, logs)
        self._products += (d @ d, d @ t, truth @ truth)
        self._missing += int(len(truth) - good.sum())

    def errors(self) -> DepthErrors:
        """Errors over all frames so far, scaled once by the median ratio."""
        counted = self._counts > 0
        n = self._counts[counted]
        total = int(n.sum())
        if not total:
            return DepthErrors(float("nan"), float("nan"), self._missing)
        logs = self._sums[counted] / n
        middle = logs[np.searchsorted(np.cumsum(n), total / 2)]
        logs = logs - middle
        ratio = np.exp(logs)
        right = n[np.maximum(ratio, 1 / ratio) < 1.25].sum()
        pixels = total + self._missing
        off = float(n @ np.abs(ratio - 1)) + self._missing
        scale = np.exp(-middle)
        squares = self._products @ (scale**2, -2 * scale, 1.0)
        log_squares = float(n @ logs**2) + self._missing * MISSING_LOG_ERROR**2
        return DepthErrors(
            off / pixels, float(right / pixels), pixels,
            float(np.sqrt(max(float(squares), 0.0) / pixels)), float(np.sqrt(log_squares / pixels)),
        )  # fmt: skip


def edges(truth: np.ndarray, ratio: float = EDGE_RATIO, reach: int = EDGE_REACH) -> np.ndarray:
    """(S, H, W) bool: pixels within `reach` px (a square) of a step of the true depth (S, H, W) by more than `ratio`; unknown depth is
    no step."""
    known = np.isfinite(truth) & (truth > 0)
    near = _extreme(np.where(known, truth, np.inf), reach, np.minimum)
    far = _extreme(np.where(known, truth, 0.0), reach, np.maximum)
    return far > ratio * near


def _extreme(maps: np.ndarray, reach: int, of: np.ufunc) -> np.ndarray:
    """The least or greatest of (..., H, W) in the square of half side `reach` about each pixel."""
    for axis in (-2, -1):
        n = maps.shape[axis]
        out = maps.copy()
        for shift in range(1, min(reach, n - 1) + 1):
            low = tuple([slice(None)] * (maps.ndim + axis) + [slice(0, n - shift)] + [slice(None)] * (-1 - axis))
            high = tuple([slice(None)] * (maps.ndim + axis) + [slice(shift, n)] + [slice(None)] * (-1 - axis))
            out[low] = of(out[low], maps[high])
            out[high] = of(out[high], maps[low])
        maps = out
    return maps


def ssim(image: np.ndarray, truth: np.ndarray, data_range: float, sigma: float = 1.5) -> float:
    """Mean structural similarity of two maps (H, W) of finite values (Wang et al., TIP 2004, eq. 13; K1 = 0.01, K2 = 0.03).

    Gaussian windows of 11 x 11 with `sigma`, covariances without Bessel's correction, and only windows that lie inside: the mean
    leaves a border of 5 px out. Raises ValueError if the maps are smaller than a window or differ in shape.
    """
    if image.shape != truth.shape or image.ndim != 2 or min(image.shape) < 11:
        raise ValueError(
            f"maps of {image.shape} and {truth.shape} cannot be compared: give two of one shape, 11 x 11 or more"
        )
    x, y = np.asarray(image, np.float64), np.asarray(truth, np.float64)
    mx, my = _blur(x, sigma), _blur(y, sigma)
    vx, vy, cov = _blur(x * x, sigma) - mx**2, _blur(y * y, sigma) - my**2, _blur(x * y, sigma) - mx * my
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    return float(np.mean((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))))


def _blur(x: np.ndarray, sigma: float) -> np.ndarray:
    """(H - 10, W - 10): weighted means of the 11 x 11 windows inside (H, W)."""
    kernel = np.exp(-0.5 * (np.arange(-5, 6) / sigma) ** 2)
    kernel /= kernel.sum()
    rows = sum(k * x[i : x.shape[0] - 10 + i] for i, k in enumerate(kernel))
    return sum(k * rows[:, i : x.shape[1] - 10 + i] for i, k in enumerate(kernel))  # type: ignore[call-overload, index, return-value]


def depth_ssim(depth: np.ndarray, truth: np.ndarray, scale: float) -> float:
    """Mean over frames of the SSIM of `scale` * depth (S, H, W) and the true depth, both cut to the truth's range and in its logarithm,
    so that near and far structure weigh alike; the range of that is the data range. Unknown pixels of the truth are set to the
    same value in both maps, missing estimates to the farthest depth. NaN if nothing is known."""
    known = np.isfinite(truth) & (truth > 0)
    if not known.any() or not np.isfinite(scale):
        return float("nan")
    low, high = np.log(truth[known].min()), np.log(truth[known].max())
    if high - low < 1e-6 or min(truth.shape[-2:]) < 11:
        return float("nan")
    good = np.isfinite(depth) & (depth > 0)
    ours = np.where(good, np.log(np.where(good, depth, 1.0) * scale), high)
    real = np.log(np.where(known, truth, np.exp(high)))
    pairs = zip(np.where(known, np.clip(ours, low, high), high), real, strict=True)
    return float(np.mean([ssim(a, b, high - low) for a, b in pairs]))


def _comparable(
    depth: np.ndarray, truth: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(depth, truth) float64 where the truth is known, (n,) each, and where the depth is finite and positive, (n,) bool."""
    truth = np.asarray(truth, dtype=np.float64)
    depth = np.asarray(depth, dtype=np.float64)
    known = np.isfinite(truth) & (truth > 0)
    if mask is not None:
        known &= mask
    truth, depth = truth[known], depth[known]
    return depth, truth, np.isfinite(depth) & (depth > 0)
