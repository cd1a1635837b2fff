"""The rooms' splits by seed, the frozen test split's checksum, and the independent random streams of a seed."""

from __future__ import annotations

import numpy as np

GENERATOR_VERSION: int = 1
SPLIT_SEEDS = {
    "train": range(10_000_000),
    "validation": range(10_000_000, 10_001_000),
    "test": range(20_000_000, 20_001_000),
}
TEST_SPLIT_SHA256 = "b6acff912feb74b3aee9557cc0f3b7796f1e07bde8124d3d700b5516c9945ff4"
TEST_RATE_HZ = 3.0

EPOCH_NS = 1_700_000_000_000_000_000

# Independent random streams of one seed: a change in how one is consumed leaves the others as they were.
STREAM_GEOMETRY, STREAM_TEXTURES, STREAM_PATH, STREAM_PHOTOMETRIC = range(4)


def check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be an integer from {low} to {high}: pass one in that range")


def check_real(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}: pass one in that range")
