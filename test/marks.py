"""Marks that a test gets from the fixtures it uses, so that nobody has to think of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

Function = TypeVar("Function", bound=Callable[..., Any])


def gives(*marks: str) -> Callable[[Function], Function]:
    """For the function of a fixture, below @pytest.fixture: every test that uses it, also through other fixtures, has these marks."""

    def give(function: Function) -> Function:
        function.marks = marks  # type: ignore[attr-defined]
        return function

    return give


def given_to(item: pytest.Item) -> Iterator[str]:
    """The marks that `item` gets from its fixtures."""
    info = getattr(item, "_fixtureinfo", None)
    for definitions in (info.name2fixturedefs if info else {}).values():
        yield from getattr(definitions[-1].func, "marks", ())
