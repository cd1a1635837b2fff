"""Does token reduction cost accuracy once the bundle has run? Whole recordings, each variant without and with it, one after the other.

  python test/benchmark/accuracy/frontier_whole.py [SOURCE ...]      -> results/frontier_whole.json, .md

The part of `come_ros eval --frontier` that is about whole recordings, for a few variants: the dense model, three ways to keep about half
of the tokens, and random groups. Without SOURCE: three recordings and two rendered rooms. Results are written after each recording.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.stamped import BUNDLED, shared, write_result

from come_ros.config import Config
from come_ros.tools.demo import render_room
from come_ros.tools.eval import _backbone
from come_ros.tools.eval.sources import Source
from come_ros.tools.eval.variants import accelerated, dense
from come_ros.tools.eval.whole_recordings import compared, compared_table, whole, whole_table

RESULTS = Path(__file__).parent / "results"
RECORDINGS = ("tum_fr3_office", "tum_fr1_rpy", "tum_fr3_cabinet")
ROOMS, ROOM_FRAMES = (20_000_750, 20_000_751), 80
VARIANTS = ("come:ratio=0.5", "tome:ratio=0.5", "random:ratio=0.5,group=3x3")


def sources(given: list[str], out: Path) -> list[str]:
    if given:
        return given
    out.mkdir(parents=True, exist_ok=True)
    rooms = [render_room(out / f"room_{seed}", seed, ROOM_FRAMES, "320x240") for seed in ROOMS]
    return [str(shared() / "data" / "real" / name) for name in RECORDINGS] + [str(room) for room in rooms]


def text(found: dict[str, Any]) -> str:
    lines = ["# Whole recordings, without and with the bundle", "", *compared_table(compared(found))]
    for name, about in found.items():
        lines += ["", f"## {name}", "", *whole_table(about)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", metavar="SOURCE", nargs="*")
    parser.add_argument(
        "-o", "--out", default="out/frontier_whole", help="where rooms are rendered (default %(default)s)"
    )
    args = parser.parse_args()
    config = Config().replace(device="cpu", threads=1)
    backbone = _backbone(config)
    variants = [dense(backbone, config), *(accelerated(backbone, config, words) for words in VARIANTS)]
    found: dict[str, Any] = {}
    for path in sources(args.sources, Path(args.out)):
        source = Source(path, config)
        about = whole(source, variants, lambda: False)
        if about is not None:
            found[source.label] = about
            write_result(
                RESULTS,
                "frontier_whole",
                {"recordings": found, "compared": compared(found)},
                text(found),
                weights=BUNDLED,
            )
    print(text(found))


if __name__ == "__main__":
    main()
