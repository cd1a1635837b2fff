"""Numbers as colours."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..types import U8

_MAPS = {
    "turbo": cv2.COLORMAP_TURBO,
    "viridis": cv2.COLORMAP_VIRIDIS,
    "plasma": cv2.COLORMAP_PLASMA,
    "magma": cv2.COLORMAP_MAGMA,
}


def span(values: NDArray[Any]) -> tuple[float, float]:
    """The 2nd and the 98th percentile of the finite values."""
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    low, high = np.quantile(known[:: max(1, len(known) // 200_000)], [0.02, 0.98])
    return float(low), float(high)


def painted(
    values: NDArray[Any], colours: str, limits: tuple[float, float] | None = None, near_first: bool = False
) -> U8:
    """(..., 3) uint8, RGB, of values (...) along a colour map; grey where they are not finite. limits: values of its ends, by default
    `span`. near_first: the small ones, which are near, get the warm end."""
    flat = np.asarray(values, np.float32).reshape(-1)
    low, high = span(flat) if limits is None else limits
    known = np.isfinite(flat)
    with np.errstate(invalid="ignore"):
        share = np.clip((flat - low) / max(high - low, 1e-9), 0, 1)
    share = np.where(known, 1 - share if near_first else share, 0)
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8), _MAPS[colours]).reshape(-1, 3)[:, ::-1]
    out = table[np.rint(share * 255).astype(np.uint8)]
    out[~known] = 90
    return np.ascontiguousarray(out.reshape(*values.shape, 3))
