"""What `come_ros fleet` reports of many recordings: a table, JSON, and one self-contained HTML page. Outliers come first."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import statistics
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ... import __version__
from ...files import shown, write_text
from ...fleet.loop import Ended
from ...fleet.record import DONE, PARTIAL, Record
from ...geometry import SIGMA_OF_MAD
from ...results.results import read_metrics
from ...verdict.judge import LEVELS
from ...view.page import FOLDER as VIEW
from .tables import for_json
from .verdict import errors_of, of_metrics

PAGE, NUMBERS = "index.html", "fleet.json"
ENOUGH = 5  # recordings, from which on one can be an outlier among them
FAR = 3.5  # robust sigmas
LEAST_SPREAD = 0.1  # relative: no closer together are recordings taken to be


@dataclass(frozen=True)
class Row:
    """A recording. state: one of fleet.work and fleet.record. skipped: whether its results are of an earlier run. images, used: numbers of
    images. ate, depth: error of the path (m) and of the depth (AbsRel), each with the best trivial baseline; NaN without truth. rate:
    images per second. links: title -> path in the fleet's folder. unusual: how it differs from the others."""

    name: str
    source: str
    state: str
    reason: str = ""
    skipped: bool = False
    attempts: int = 1
    seconds: float = 0.0
    node: str = ""
    images: int = 0
    used: int = 0
    rate: float = math.nan
    memory_mb: float = math.nan
    verdict: str = ""
    verdict_text: str = ""
    ate: float = math.nan
    ate_baseline: float = math.nan
    depth: float = math.nan
    depth_baseline: float = math.nan
    links: Mapping[str, str] = field(default_factory=dict)
    unusual: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether something is to be done about it."""
        return self.state != DONE

    @property
    def ratio(self) -> float:
        """Error of the path over that of the best trivial baseline."""
        return self.ate / self.ate_baseline if self.ate_baseline > 0 else math.nan


def row_of(name: str, source: str, ended: Ended | None, record: Record | None, out: Path) -> Row:
    """A recording that ended now, or whose earlier results have that record."""
    if ended is not None:
        about: dict[str, Any] = dataclasses.asdict(ended)
    elif record is not None:
        about = {k: getattr(record, k) for k in ("state", "reason", "attempts", "seconds", "node")} | {"skipped": True}
    else:
        about = {"state": "stopped", "reason": "not started"}
    folder = out / name
    places = {
        "picture": folder / "overview.png", "3D view": folder / VIEW / "index.html", "metrics": folder / "metrics.json",
        "log": out / "logs" / f"{name}.log",
    }  # fmt: skip
    if about["state"] not in (DONE, PARTIAL):
        places = {"log": places["log"]}
    links = {title: str(path.relative_to(out)) for title, path in places.items() if path.exists()}
    metrics = read_metrics(folder) if about["state"] in (DONE, PARTIAL) else {}
    return Row(name, source, links=links, **about, **_of_metrics(metrics))


def _of_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    if not metrics:
        return {}
    errors, verdict = errors_of(metrics), of_metrics(metrics)
    return {
        "images": metrics["frames"]["read"], "used": metrics["frames"]["used"], "rate": metrics["timings"]["images_per_s"],
        "memory_mb": metrics["timings"]["peak_memory_mb"], "verdict": verdict.level, "verdict_text": verdict.line,
        "ate": errors.path, "ate_baseline": errors.path_baseline[1], "depth": errors.depth, "depth_baseline": errors.depth_baseline[1],
    }  # fmt: skip


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Those that failed, partial ones, outliers, then from the worst verdict to the best, and by the error of the path."""
    rows = [dataclasses.replace(row, unusual=unusual) for row, unusual in zip(rows, _unusual(rows), strict=True)]

    def rank(row: Row) -> tuple[Any, ...]:
        level = LEVELS.index(row.verdict) if row.verdict in LEVELS else -1
        ratio = row.ratio if math.isfinite(row.ratio) else -1.0
        return row.state in (DONE, PARTIAL), row.state == DONE, not row.unusual, -level, -ratio, row.name

    return sorted(rows, key=rank)


def _unusual(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Of each recording, in what it is much worse than the others: by logarithms, in robust sigmas from their median."""
    out: list[list[str]] = [[] for _ in rows]
    measures: tuple[tuple[str, Callable[[Row], float], float], ...] = (
        ("error of the path over the baseline's", lambda row: row.ratio, 1.0),
        ("AbsRel of the depth", lambda row: row.depth, 1.0),
        ("share of images used", lambda row: row.used / row.images if row.images else math.nan, -1.0),
        ("images/s", lambda row: row.rate, -1.0),
    )
    for title, measure, sign in measures:
        known = {i: math.log(value) for i, row in enumerate(rows) if (value := measure(row)) > 0}
        if len(known) < ENOUGH:
            continue
        middle = statistics.median(known.values())
        spread = max(SIGMA_OF_MAD * statistics.median(abs(v - middle) for v in known.values()), LEAST_SPREAD)
        for i, value in known.items():
            if sign * (value - middle) > FAR * spread:
                out[i].append(f"{title}: {math.exp(value - middle):.2g} times the median")
    return [tuple(texts) for texts in out]


class FleetReport:
    """Of all recordings. seconds: of the whole run."""

    def __init__(self, rows: Sequence[Row], seconds: float) -> None:
        self.rows, self.seconds = ordered(rows), seconds

    @property
    def totals(self) -> dict[str, Any]:
        """Counts, and sums over the recordings that were worked on now."""
        now = [row for row in self.rows if not row.skipped]
        images = sum(row.images for row in now)
        return {
            "recordings": len(self.rows),
            "done": sum(row.state == DONE for row in self.rows),
            "skipped": sum(row.skipped for row in self.rows),
            "partial": sum(row.state == PARTIAL for row in self.rows),
            "failed": sum(row.state not in (DONE, PARTIAL) for row in self.rows),
            "images": images,
            "seconds": self.seconds,
            "task_seconds": sum(row.seconds for row in now),
            "images_per_s": images / self.seconds if self.seconds > 0 else None,
        }

    def json(self) -> str:
        rows = [{**dataclasses.asdict(row), "unusual": list(row.unusual)} for row in self.rows]
        about = {"come_ros": __version__, "totals": self.totals, "recordings": rows}
        return json.dumps(for_json(about), indent=1) + "\n"

    def table(self) -> str:
        """As aligned plain text."""
        head = (
            "recording",
            "state",
            "images",
            "used",
            "images/s",
            "ATE, m",
            "baseline",
            "AbsRel",
            "baseline",
            "verdict",
        )
        cells = [
            (row.name, _state(row), *map(str, (row.images, row.used)), _number(row.rate, 1), _number(row.ate, 3),
             _number(row.ate_baseline, 3), _number(row.depth, 3), _number(row.depth_baseline, 3), row.verdict or "-")
            for row in self.rows
        ]  # fmt: skip
        widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
        lines = [
            "  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in [head, *cells]
        ]
        for row in self.rows:
            if row.failed or row.unusual:
                lines.append(f"{row.name}: {'; '.join(filter(None, [row.reason, *row.unusual]))}")
        t = self.totals
        lines.append(
            f"\n{t['recordings']} recordings: {t['done']} done ({t['skipped']} earlier), {t['partial']} partial, {t['failed']} failed; "
            f"{t['images']} images in {self.seconds:.0f} s, {t['images_per_s'] or 0:.1f} images/s"
        )
        return "\n".join(lines)

    def page(self) -> str:
        """HTML that needs nothing else; links lead to files next to it."""
        t = self.totals
        summary = " · ".join(
            f"{t[name]} {name}" for name in ("recordings", "done", "skipped", "partial", "failed", "images")
        )
        head = (
            "recording",
            "state",
            "images",
            "used",
            "images/s",
            "ATE, m",
            "best baseline",
            "AbsRel",
            "best baseline",
            "verdict",
            "",
        )
        rows = "\n".join(_html_row(row) for row in self.rows)
        return _FRAME.format(
            version=__version__,
            summary=f"{summary} · {self.seconds:.0f} s",
            head="".join(f"<th>{html.escape(title)}</th>" for title in head),
            rows=rows,
        )


_FRAME = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>come_ros fleet</title>
<style>
body {{ font: 14px/1.45 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }}
table {{ border-collapse: collapse }}
th, td {{ text-align: left; padding: .3em .7em; border-bottom: 1px solid #ddd; vertical-align: top }}
td.n {{ text-align: right; font-variant-numeric: tabular-nums }}
.bad {{ background: #fde4e1 }} .doubt {{ background: #fff3d6 }} .good {{ background: #e4f4e4 }}
small {{ color: #555; display: block; max-width: 60em }}
</style></head><body>
<h1>come_ros fleet</h1>
<p>{summary}<br><small>come_ros {version}. What failed comes first, then outliers, then from the worst verdict to the best. ATE and AbsRel
stand next to the best trivial baseline, which needs no images. `come_ros view NAME` shows a result in 3D.</small></p>
<table><thead><tr>{head}</tr></thead><tbody>
{rows}
</tbody></table></body></html>
"""


def _html_row(row: Row) -> str:
    colour = "bad" if row.state not in (DONE, PARTIAL) or row.verdict == LEVELS[2] else "good"
    if colour == "good" and (row.state == PARTIAL or row.unusual or row.verdict == LEVELS[1]):
        colour = "doubt"
    notes = [row.reason, *row.unusual, row.verdict_text, f"from {row.source}"]
    links = " ".join(
        f'<a href="{html.escape(urllib.parse.quote(place, errors="surrogateescape"))}">{html.escape(title)}</a>'
        for title, place in row.links.items()
    )
    small = "".join(f"<small>{html.escape(shown(text))}</small>" for text in notes if text)
    numbers = (
        str(row.images), str(row.used), _number(row.rate, 1), _number(row.ate, 3), _number(row.ate_baseline, 3), _number(row.depth, 3),
        _number(row.depth_baseline, 3),
    )  # fmt: skip
    cells = "".join(f'<td class="n">{text}</td>' for text in numbers)
    return (
        f'<tr><td><b>{html.escape(row.name)}</b>{small}</td><td class="{colour}">{html.escape(_state(row))}</td>{cells}'
        f"<td>{html.escape(row.verdict or '-')}</td><td>{links}</td></tr>"
    )


def _state(row: Row) -> str:
    more = [f"{row.attempts} attempts"] * (row.attempts > 1) + ["earlier"] * row.skipped
    return f"{row.state} ({', '.join(more)})" if more else row.state


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def write_report(report: FleetReport, out: Path) -> None:
    """Writes both files. Raises OutputError."""
    write_text(out / NUMBERS, report.json())
    write_text(out / PAGE, report.page())
