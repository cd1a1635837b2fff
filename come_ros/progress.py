"""Progress of long work on the terminal, alike in all commands: a bar where the steps can be counted, a line where they cannot. Nothing
where standard error is no terminal, and nothing with --quiet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

_QUIET = ContextVar("quiet", default=False)


@contextlib.contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """Within this block, `bar` and `doing` show nothing if `quiet`."""
    token = _QUIET.set(quiet)
    try:
        yield
    finally:
        _QUIET.reset(token)


def is_quiet() -> bool:
    """Whether only results, warnings and errors are wanted."""
    return _QUIET.get()


def bar(
    items: Iterable[Any] | None = None, *, total: float | None = None, desc: str = "", unit: str = "it", **options: Any
) -> Any:
    """A tqdm with rate and time left. options: others of tqdm."""
    from tqdm import tqdm  # only now, so that --help is quick

    return tqdm(items, total=total, desc=desc, unit=unit, disable=True if is_quiet() else None, **options)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Shows `what` while the block runs, for work whose steps cannot be counted."""
    with bar(total=1, desc=what, bar_format="{desc} ...", leave=False):
        yield
