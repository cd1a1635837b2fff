"""Does token reduction cost accuracy once the bundle has run? Whole recordings, each variant without and with it, one after the other.

  python test/benchmark/accuracy/frontier_whole.py [SOURCE ...]                  -> results/frontier_whole.json, .md
  python test/benchmark/accuracy/frontier_whole.py --weights FILE -o out/whole   weights that do not ship -> out/whole
  python test/benchmark/accuracy/frontier_whole.py --images 16                   windows of 16 -> results/frontier_whole_16.json, .md

The part of `come_ros eval --frontier` that is about whole recordings, for a few variants: the dense model, every reducer at about half of
the tokens or keys, and the trivial baselines random groups and smaller images. Without SOURCE: three recordings and two rendered rooms.
Runs are kept in --out, so that it can be stopped and started again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark import kept
from benchmark.stamped import shared

from come_ros import progress
from come_ros.config import Config
from come_ros.tools.demo import render_room
from come_ros.tools.eval import _backbone
from come_ros.tools.eval.sources import Source
from come_ros.tools.eval.variants import Variant
from come_ros.tools.eval.whole_recordings import compared, compared_table, whole, whole_table

RECORDINGS = ("tum_fr3_office", "tum_fr1_rpy", "tum_fr3_cabinet")
ROOMS, ROOM_FRAMES = (20_000_750, 20_000_751), 80
VARIANTS = (
    "come:ratio=0.5,group=3x3", "come:ratio=0.5,group=2x2,edge_weight=3", "tome:ratio=0.5", "good_token_hunting:ratio=0.5",
    "pace:ratio=0.5", "subscene:ratio=0.5", "regime:ratio=0.5", "random:ratio=0.5,group=3x3", "random:ratio=0.5,group=2x2",
)  # fmt: skip
SHRUNK = 0.6
"""share of the patches of smaller images"""


def sources(given: list[str], out: Path) -> list[str]:
    if given:
        return given
    out.mkdir(parents=True, exist_ok=True)
    rooms = [out / f"room_{seed}" for seed in ROOMS]
    for room, seed in zip(rooms, ROOMS, strict=True):
        if not (room / "metadata.yaml").exists():
            render_room(room, seed, ROOM_FRAMES, "320x240")
    return [str(shared() / "data" / "real" / name) for name in RECORDINGS] + [str(room) for room in rooms]


def measured(source: Source, variants: Iterable[Variant], store: kept.Kept) -> dict[str, Any] | None:
    """As whole_recordings.whole, of which each variant is kept."""
    about: dict[str, Any] = {"baselines": {}, "variants": {}}
    for variant in variants:
        found = store.get(f"{source.label} {variant.name}", lambda v=variant: whole(source, [v], lambda: False))
        if found is None:
            return None
        about["variants"] |= found["variants"]
        about["baselines"] = about["baselines"] or found["baselines"]
    return about


def text(found: dict[str, Any], images: int, left_out: dict[str, str], commits: set[str]) -> str:
    lines = [
        f"# Whole recordings, without and with the bundle, windows of {images}",
        "",
        *compared_table(compared(found)),
    ]
    for name, about in found.items():
        lines += ["", f"## {name}", "", *whole_table(about)]
    lines += [f"\nLeft out: {words} ({reason})" for words, reason in left_out.items()]
    return "\n".join([*lines, "", f"Measured at {', '.join(sorted(commits))}.", ""])


def main(words: list[str] | None = None) -> int:
    parser = kept.arguments(__doc__, "frontier_whole")
    parser.add_argument("sources", metavar="SOURCE", nargs="*")
    usual = Config().window.size
    parser.add_argument("--images", type=int, default=usual, help="of a window (default %(default)s)")
    args = parser.parse_args(words)
    config = kept.configured(args.weights, **{"window.size": args.images})
    variants, left_out = kept.variants(_backbone(config), config, VARIANTS, [SHRUNK])
    store = kept.Kept(args.out, f"runs_{args.images}", args.weights)
    found: dict[str, Any] = {}
    for path in progress.bar(sources(args.sources, args.out), desc="recordings"):
        source = Source(path, config)
        about = measured(source, variants.values(), store)
        if about is not None:
            found[source.label] = about
    if not found:
        raise SystemExit("no source has a true path of 3 poses or more: name others")
    said = text(found, args.images, left_out, store.commits)
    name = "frontier_whole" + (f"_{args.images}" if args.images != usual else "")
    return kept.finish(name, args, {"recordings": found, "compared": compared(found)}, said)


if __name__ == "__main__":
    sys.exit(main())
