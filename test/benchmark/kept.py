"""Benchmarks of weights that may not ship yet: which weights, what of a run is kept, and where its result goes.

A program that uses it measures the bundled model, or with --weights a file next to which lies what belongs to it (see ship.py). What
it has measured is kept in --out by the checksum of these files, so that it can be stopped and started again, and so that a result of
weights that ship afterwards is written into results/, with a stamp, without being measured again. Its `main` asks `arguments` for its
parser, measures, and hands over to `finish`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmark.ship import files_of
from benchmark.stamped import BUNDLED, git, sha256, write_result

from come_ros.backbones.checkpoint import bundled_weights
from come_ros.config import Config
from come_ros.errors import CheckpointError
from come_ros.files import write_text
from come_ros.tools.eval.variants import DENSE, Variant, accelerated, dense, smaller
from come_ros.tools.report.tables import for_json

RESULTS = Path(__file__).parent / "accuracy" / "results"


def arguments(doc: str, name: str, against: bool = False) -> argparse.ArgumentParser:
    """A parser with --weights and --out, and --against for programs that compare two models. doc: of the program, its help. name: of
    the result."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", metavar="FILE", default="", help="weights to measure (default: bundled)")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("out", name),
        help="where what was measured is kept (default %(default)s)",
    )
    if against:
        parser.add_argument(
            "--against", metavar="FILE", default="", help="weights to compare with (default: bundled, if --weights is given)"
        )  # fmt: skip
    return parser


def compared(args: argparse.Namespace) -> dict[str, str]:
    """Name -> path of the weights that are compared: the earlier ones first, if there are any."""
    new = args.weights or bundled_weights()
    old = args.against or bundled_weights()
    return {Path(path).stem: path for path in dict.fromkeys((old, new))}


def configured(weights: str = "", **changes: Any) -> Config:
    """The configuration for a weights file and what lies next to it, on one thread of the CPU. changes: other parameters."""
    path = Path(weights or bundled_weights())
    return Config().replace(weights=str(path), device="cpu", threads=1).replace(**changes)


def variants(
    backbone: Any, config: Config, wanted: Sequence[str], shrunk: Sequence[float] = ()
) -> tuple[dict[str, Variant], dict[str, str]]:
    """The dense model, the accelerators `wanted` by these texts, and the dense model on smaller images: for each of `shrunk`, a share of
    the patches, the nearest size of about the same proportions. And which accelerators were left out, with the reason: their networks
    are missing."""
    out, left_out = {DENSE: dense(backbone, config)}, {}
    for text in wanted:
        try:
            out[text] = accelerated(backbone, config, text)
        except CheckpointError as error:
            left_out[text] = str(error)
    width, height = backbone.image_size(640, 480, config.input.max_side or backbone.native_side)
    shares = {v: np.prod(v.backbone.size) / (width * height) for v in smaller(backbone, config, height, width)}
    for share in shrunk:
        near = min(shares, key=lambda v: abs(shares[v] - share))
        out[near.name] = near
    return out, left_out


NETWORKS = ("come", "layer plan", "pace")
"""what may lie next to a weights file"""


def digest(weights: str = "", *words: str, networks: Iterable[str] = NETWORKS) -> str:
    """Identifies a weights file, those of NETWORKS next to it, and any settings, as 12 hexadecimal digits."""
    path = Path(weights or bundled_weights())
    there = files_of(path.parent, path.stem)
    files = [path, *(there[name] for name in networks if there[name].is_file())]
    return hashlib.sha256("\n".join([*map(sha256, files), *words]).encode()).hexdigest()[:12]


class Kept:
    """The rows of one measurement by their keys, in a file that grows row by row: a run that is stopped loses the row it is at."""

    def __init__(
        self,
        folder: Path,
        name: str,
        weights: str = "",
        settings: Iterable[str] = (),
        networks: Iterable[str] = NETWORKS,
    ) -> None:
        """name: of the measurement. weights: the file that is measured. settings: what else its rows depend on. networks: those next to
        the weights that they depend on."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}_{digest(weights, *settings, networks=networks)}.jsonl"
        self._lines: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            text = self.path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]  # the last line is not, if it was interrupted
            if whole != text:
                write_text(self.path, whole)
            self._lines = {line["key"]: line for line in map(json.loads, whole.splitlines())}

    @property
    def rows(self) -> dict[str, Any]:
        """Key -> row, in the order in which they were measured."""
        return {key: line["row"] for key, line in self._lines.items()}

    @property
    def commits(self) -> set[str]:
        """At which the rows were measured."""
        return {line["commit"] for line in self._lines.values()}

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """The row of that key, which is measured if it is not there: anything that JSON can hold."""
        if key not in self._lines:
            line = json.dumps({"key": key, "commit": git("rev-parse", "--short=12", "HEAD"), "row": measure()})
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write(f"{line}\n")
            self._lines[key] = json.loads(line)
        return self._lines[key]["row"]


def publish(
    name: str,
    weights: str,
    out: Path,
    data: Any,
    text: str,
    draw: Callable[[Path], None] | None = None,
    depends_on: Iterable[str] = BUNDLED,
    results: Path = RESULTS,
) -> Path:
    """The folder with NAME.json, NAME.md and NAME.png: results/, with a stamp, if `weights` are the bundled ones; else `out`.

    depends_on: files in come_ros/models that the figures depend on, if they are the bundled ones.
    """
    data = for_json(data)
    if sha256(Path(weights or bundled_weights())) == sha256(Path(bundled_weights())):
        write_result(results, name, data, text, draw, weights=depends_on)
        return results
    out.mkdir(parents=True, exist_ok=True)
    if data is not None:
        write_text(out / f"{name}.json", json.dumps(data, indent=1) + "\n")
    write_text(out / f"{name}.md", text)
    if draw is not None:
        draw(out / f"{name}.png")
    return out


def described(doc: str, first: str, last: str = "") -> str:
    """What a program's docstring says from the word or words `first` on, up to `last`, as one paragraph of a result."""
    end = doc.rindex(last) if last else len(doc)
    return doc[doc.index(first) : end].replace("\n", " ").strip()


def finish(
    name: str,
    args: argparse.Namespace,
    data: Any,
    text: str,
    draw: Callable[[Path], None] | None = None,
    depends_on: Iterable[str] = BUNDLED,
) -> int:
    """Publish a result, see `publish`, print its text and which files it has. args: of `arguments`. Returns the exit status."""
    folder = publish(name, args.weights, args.out, data, text, draw, depends_on)
    print(text)
    kinds = [kind for kind, there in (("json", data), ("md", text), ("png", draw)) if there is not None]
    print(f"{', '.join(f'{name}.{kind}' for kind in kinds)} in {folder}")
    return 0
