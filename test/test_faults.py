"""The fault matrix names tests that there are."""

from __future__ import annotations

import re

import pytest
from faults import MATRIX, ROOT


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.condition)
def test_each_row_has_a_test(row) -> None:
    assert row.tests and row.behaviour
    for test in row.tests:
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / "test" / file).read_text(), re.MULTILINE), test
