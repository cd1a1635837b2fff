"""Deep images reach the model with the range that their stream uses, steadily."""

from __future__ import annotations

import numpy as np
import pytest

from come_ros.camera.levels import FULL, Levels

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (60, 80), np.uint8)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_each_depth_of_a_sensor_fills_the_range(bits: int) -> None:
    values = np.rint(GREY.astype(float) * (2**bits - 1) / 255).astype(np.uint16)
    got = Levels().to_8_bits(values)
    assert np.abs(got.astype(int) - GREY).max() <= 1
    if bits == 16:
        np.testing.assert_array_equal(got, FULL.to_8_bits(values))


def test_a_thermal_camera_is_stretched() -> None:
    levels = Levels()
    got = levels.to_8_bits((7200 + 4 * GREY.astype(np.uint16)).astype(np.uint16))
    assert got.min() < 40 and got.max() > 215 and levels.range is not None and 7000 < levels.range[0] < 7200


def test_noise_alone_is_no_picture() -> None:
    flat = np.full((50, 50), 5000, np.uint16) + RNG.integers(0, 3, (50, 50), np.uint16)
    assert np.ptp(Levels().to_8_bits(flat)) < 30


def test_some_hot_pixels_change_nothing() -> None:
    values = GREY.astype(np.uint16) * 4
    values[0, :4] = 65535
    assert np.abs(Levels().to_8_bits(values)[1:].astype(int) - GREY[1:]).max() <= 1


def test_the_range_is_steady_and_only_widens() -> None:
    levels = Levels()
    dark, light = GREY.astype(np.uint16) * 4, GREY.astype(np.uint16) * 16
    first = levels.to_8_bits(dark)
    np.testing.assert_array_equal(levels.to_8_bits(dark // 2), Levels("0 1023").to_8_bits(dark // 2))
    levels.to_8_bits(light)
    assert levels.range == (0.0, 4095.0)
    again = levels.to_8_bits(dark)
    assert again.max() < first.max() and levels.range == (0.0, 4095.0)


@pytest.mark.parametrize(("scale", "top"), [(1.0, 1.0), (200.0, 255.0)])
def test_floats(scale: float, top: float) -> None:
    values = (GREY / 255 * scale).astype(np.float32)
    values[0, 0] = np.nan
    levels = Levels()
    got = levels.to_8_bits(values)
    assert got[0, 0] == 0 and levels.range == (0.0, top)
    assert np.abs(got[1:].astype(float) - GREY[1:] * (scale / top)).max() <= 1


def test_a_fixed_range_stays() -> None:
    levels = Levels("100 300")
    np.testing.assert_array_equal(
        levels.to_8_bits(np.array([[0, 100, 200, 300, 60000]], np.uint16)), [[0, 0, 128, 255, 255]]
    )
    assert levels.range == (100.0, 300.0)
