"""The overview of a fleet: order, outliers, and a page that holds what it is given and nothing from elsewhere."""

from __future__ import annotations

import html.parser
import json
from typing import Any

from come_ros.tools.report.fleet import FleetReport, Row, ordered


def row(name: str, **more: Any) -> Row:
    about = {
        "state": "done",
        "images": 100,
        "used": 50,
        "rate": 10.0,
        "verdict": "usable",
        "ate": 1.0,
        "ate_baseline": 10.0,
    }
    return Row(name, f"in/{name}", **{**about, **more})


def test_failures_come_first_then_outliers_then_bad_verdicts_then_large_errors() -> None:
    good = [row(f"g{i}", ate=1.0 + 0.01 * i) for i in range(6)]
    rows = [*good, row("far", ate=9.0), row("bad", verdict="unusable"), row("unsure", verdict="doubtful"),
            row("half", state="partial"), row("gone", state="lost", reason="node died")]  # fmt: skip
    names = [each.name for each in ordered(rows)]
    assert names == ["gone", "half", "far", "bad", "unsure", "g5", "g4", "g3", "g2", "g1", "g0"]
    (far,) = (each for each in ordered(rows) if each.name == "far")
    assert len(far.unusual) == 1 and "error of the path" in far.unusual[0] and "times the median" in far.unusual[0]


def test_slow_ones_and_those_that_use_few_images_are_outliers_better_ones_are_not() -> None:
    rows = [*(row(f"g{i}") for i in range(6)), row("slow", rate=1.0), row("fast", rate=100.0), row("few", used=5)]
    unusual = {each.name: each.unusual for each in ordered(rows) if each.unusual}
    assert set(unusual) == {"slow", "few"} and "images/s: 0.1 times" in unusual["slow"][0]


def test_few_recordings_and_those_without_truth_have_no_outliers() -> None:
    rows = [row(f"g{i}") for i in range(3)] + [row("far", ate=9.0)]
    assert not any(each.unusual for each in ordered(rows))
    unknown = [row(f"g{i}", ate=float("nan"), ate_baseline=float("nan")) for i in range(6)]
    assert not any(each.unusual for each in ordered(unknown))
    (cells,) = (line for line in FleetReport(unknown, 2.0).table().splitlines() if line.startswith("g0"))
    assert cells.split() == ["g0", "done", "100", "50", "10.0", "-", "-", "-", "-", "usable"]


def test_the_page_escapes_what_it_is_given_and_needs_nothing_else() -> None:
    links = {"log": "logs/a <b>&.log"}
    odd = row("a <b>&", reason="<script>alert(1)</script> \udc80", state="failed", links=links)
    report = FleetReport([odd, row("good", skipped=True)], 10.0)
    page = report.page()
    assert "<script" not in page and "src=" not in page and "://" not in page
    found: list[tuple[str, dict[str, str | None]]] = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.append((tag, dict(attrs)))  # type: ignore[method-assign]
    parser.feed(page)
    assert [about["href"] for tag, about in found if tag == "a"] == ["logs/a%20%3Cb%3E%26.log"]
    assert [tag for tag, _ in found].count("tr") == 3
    totals = json.loads(report.json())["totals"]
    assert (totals["done"], totals["skipped"], totals["failed"], totals["images"]) == (1, 1, 1, 100)
    assert totals["images_per_s"] == 10.0
