"""Which images of a recording are wanted, by stamps and by number."""

from __future__ import annotations

import pytest

from come_ros.datasets.part import Chosen, Part
from come_ros.errors import ConfigError

S = 1_000_000_000
STAMPS = [100 * S + i * S // 10 for i in range(30)]


def chosen(part: Part, stamps: list[int] = STAMPS) -> list[int]:
    asked = Chosen(part)
    return [i for i, stamp in enumerate(stamps) if asked.takes(stamp)]


@pytest.mark.parametrize(
    ("part", "want"),
    [
        (Part(), list(range(30))),
        (Part(start_s=1.0), list(range(10, 30))),
        (Part(duration_s=1.0), list(range(10))),
        (Part(start_s=0.5, duration_s=1.0), list(range(5, 15))),
        (Part(every=7), [0, 7, 14, 21, 28]),
        (Part(start_s=0.5, every=10), [5, 15, 25]),
        (Part(most=4), [0, 1, 2, 3]),
        (Part(start_s=1.0, duration_s=1.5, every=2, most=3), [10, 12, 14]),
        (Part(start_s=100.0), []),
    ],
)
def test_parts(part: Part, want: list[int]) -> None:
    assert chosen(part) == want and part.count(STAMPS) == len(want)
    assert bool(part) == (part != Part())


def test_wrong_stamps_are_nobodys_part_to_judge() -> None:
    odd = [*STAMPS[:5], 0, *STAMPS[6:10], STAMPS[10] + 3600 * S]
    assert chosen(Part(), odd) == list(range(11))
    assert chosen(Part(start_s=0.2), odd) == [2, 3, 4, 6, 7, 8, 9, 10]


@pytest.mark.parametrize(
    "wrong",
    [
        {"start_s": -1.0},
        {"start_s": float("nan")},
        {"duration_s": 0.0},
        {"every": 0},
        {"most": 0},
        {"duration_s": float("inf")},
    ],
)
def test_what_is_no_part(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        Part(**wrong)
