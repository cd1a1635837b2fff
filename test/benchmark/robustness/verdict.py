"""How often the verdict is wrong: `come_ros bag` on good and on worthless sequences, judged without their truth.

  python test/benchmark/robustness/verdict.py                          all cases -> results/verdict.json, .md
  python test/benchmark/robustness/verdict.py --panoramas DIR          and those made of panoramas (Radiance files, equirectangular)
  python test/benchmark/robustness/verdict.py --only street noise      only cases with these words in their names; nothing is written
  python test/benchmark/robustness/verdict.py --limits                 errors on tune alone, of what is kept, with other limits in judge.py;
                                                                       nothing is run or written

What a case is worth follows from its truth. Worthless: no scene at all; or the camera moves, and the path is no better than nine tenths of
the best trivial baseline (straight line, random walk, not moving) and misses a quarter of the extent of the true one; or it only turns, and
half of its turns are wrong. Good: the camera moves, the path has less than half of the baseline's error or misses less than a tenth of its
extent, and depth beats the best constant and the mean depth map. All others are between: no verdict on them is an error. The limits of the
verdict were chosen on one half (tune); the other half (test) shares no room, recording or panorama with it. `tiny2` learnt on these
panoramas, so what is made of them is also counted apart. Trivial judges look at one number; its limit is chosen on tune, with the fewest
errors there: false usable as a share of the worthless cases, plus false unusable as a share of the good ones.

What a run knows of a case is kept in --out by the checksum of the weights, and judged when it is read: it can be stopped and started again,
and other limits in judge.py need no new run. Code of the pipeline that changed since does: name another folder.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.kept import Kept
from benchmark.robustness.verdict_cases import HALVES, OF_PANORAMAS, TEST, TUNE, Case, cases
from benchmark.stamped import TINY, shared, write_result

from come_ros.backbones import load_backbone
from come_ros.config import Config
from come_ros.datasets import Recording
from come_ros.pipeline import ReconstructionPipeline
from come_ros.tools.bag.job import Job
from come_ros.tools.report.results import ResultFolder
from come_ros.tools.report.tables import for_json
from come_ros.types import F32, F64, Frame
from come_ros.verdict import judge as rules
from come_ros.verdict.evidence import Evidence
from come_ros.verdict.judge import DOUBTFUL, LEVELS, UNUSABLE, USABLE, Facts, judge

RESULTS = Path(__file__).parent / "results"
WORTH = GOOD, BETWEEN, WORTHLESS = "good", "between", "worthless"
STILL_M, STILL = 0.06, 0.003  # extent of a path, m, and step in depths, below which a camera counts as still


class Made(Recording):
    """A case as a recording."""

    kind = "made"

    def __init__(self, case: Case) -> None:
        self.case, self.count, self.timed = case, len(case.images), not case.photographs

    def iter_frames(self) -> Iterator[Frame]:
        for image, stamp in zip(self.case.images, self.case.stamps_ns.tolist(), strict=True):
            yield Frame(image, stamp, "camera", self.case.intrinsics)

    def iter_depth(self) -> Iterator[tuple[int, F32]]:
        for depth, stamp in zip(self.case.depth or (), self.case.stamps_ns.tolist(), strict=False):
            if depth is not None:
                yield stamp, depth

    def truth(self) -> dict[int, F64]:
        poses = self.case.poses
        return (
            {}
            if poses is None
            else {int(t): p for t, p in zip(self.case.stamps_ns, poses, strict=True) if p[3, 3] == 1}
        )


def measured(case: Case, pipeline: ReconstructionPipeline) -> dict[str, Any]:
    """The metrics that `come_ros bag` has of a case, without pictures."""
    with tempfile.TemporaryDirectory() as out, ResultFolder(Path(out), (), True) as folder:
        job = Job(
            "made", pipeline.config, pipeline, [Made(case) for _ in range(3)], Made(case).truth(), folder, record=False
        )
        failure = job.reconstruct(_never)
        if failure is not None:
            raise failure
        job.finish(_always)
    return job.metrics


def _never() -> bool:
    return False


def _always() -> bool:
    return True


def worth(case: Case, metrics: dict[str, Any]) -> str:
    """One of WORTH, by the truth."""
    if case.worthless:
        return WORTHLESS
    path, turn, depth = metrics["trajectory"], metrics["rotation"], metrics["depth"]
    if not path:
        return BETWEEN
    ate = path["ate_rmse_m"]
    still, best = ate["not moving"], min(v for k, v in ate.items() if k != "come_ros" and not k.startswith("best"))
    known = [float(np.nanmedian(d)) for d in case.depth or () if d is not None]
    steps = path["rpe_translation_rmse_m"]["not moving"]
    if still < STILL_M or (known and steps < STILL * np.median(known)):
        wrong = turn["median_deg"]["come_ros"] > 0.5 * turn["median_deg"]["no rotation"] > 0.5
        return WORTHLESS if wrong else BETWEEN
    if ate["come_ros"] > 0.9 * best and ate["come_ros"] > 0.25 * still:
        return WORTHLESS
    once = {k: v["abs_rel"] for k, v in depth["per_sequence"].items()} if depth else {"come_ros": 0.0, "nothing": 1.0}
    deep = once["come_ros"] < min(v for k, v in once.items() if k != "come_ros")
    return GOOD if deep and (ate["come_ros"] < 0.5 * best or ate["come_ros"] < 0.1 * still) else BETWEEN


def run(case: Case, backbone: Any, config: Config) -> dict[str, Any]:
    """What a run knows of a case, and what the case is worth."""
    begun = time.process_time()
    changed = config.replace(**{"keyframe.mode": "every"}) if case.photographs else config
    metrics = measured(case, ReconstructionPipeline(changed, backbone))
    path, depth, turn = metrics["trajectory"], metrics["depth"], metrics["rotation"]
    row = {
        "worth": worth(case, metrics),
        "used": metrics["frames"]["used"],
        "read": metrics["frames"]["read"],
        "refused": metrics["stream"]["refused"],
        "facts": metrics["verdict"]["facts"],
        "ate_m": path
        and {
            k: v
            for k, v in path["ate_rmse_m"].items()
            if k in ("come_ros", "not moving", "straight line", "random walk")
        },
        "abs_rel": depth and {k: v["abs_rel"] for k, v in depth["per_sequence"].items()},
        "turn_deg": turn and turn["median_deg"],
        "cpu_s": time.process_time() - begun,
    }
    return dict(for_json(row))


def cost_ms(case: Case, backbone: Any, config: Config) -> float:
    """CPU time of the evidence for a keyframe, ms."""
    pipeline, evidence, spent, frames = ReconstructionPipeline(config, backbone), Evidence(), 0.0, 0
    for submap in pipeline.run(Made(case).iter_frames()):
        begun = time.process_time()
        evidence.add(submap)
        spent += time.process_time() - begun
        frames += len(submap)
    return 1e3 * spent / frames


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """A kept row, and what judge.py says of it now."""
    own = judge(Facts(**{k: math.nan if v is None else v for k, v in row["facts"].items()}))
    return {**row, "level": own.level, "line": own.line}


def errors(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    """How many cases of each worth there are, and how often each error was made."""
    count = Counter((r["worth"], r["level"]) for r in rows)
    return {
        WORTHLESS: sum(count[WORTHLESS, level] for level in LEVELS),
        GOOD: sum(count[GOOD, level] for level in LEVELS),
        "false usable": count[WORTHLESS, USABLE],
        "false unusable": count[GOOD, UNUSABLE],
        "worthless doubtful": count[WORTHLESS, DOUBTFUL],
        "good doubtful": count[GOOD, DOUBTFUL],
    }


def rates(rows: list[dict[str, Any]]) -> str:
    """A table of what was said of what, and the errors."""
    count = Counter((r["worth"], r["level"]) for r in rows)
    lines = ["| | " + " | ".join(LEVELS) + " |", "|---|" + "---|" * len(LEVELS)]
    lines += [f"| {w} | " + " | ".join(str(count[w, level]) for level in LEVELS) + " |" for w in WORTH]
    found = errors(rows)
    wrong = [
        f"false usable: {found['false usable']} of {found[WORTHLESS]} worthless cases",
        f"false unusable: {found['false unusable']} of {found[GOOD]} good ones",
        f"doubtful: {found['worthless doubtful']} of the worthless, {found['good doubtful']} of the good",
    ]
    return "\n".join([*lines, "", "; ".join(wrong) + "."])


# Trivial judges


def chosen_limit(rows: Iterable[dict[str, Any]], fact: str) -> float:
    """The least value of a fact that a usable result has, so that the shares of both errors add up to the least; in the middle of all such
    limits."""
    rows = list(rows)
    values = np.unique([r["facts"][fact] for r in rows if r["facts"][fact] is not None])
    limits = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])

    def cost(limit: float) -> float:
        found = errors(by_one_number(rows, fact, limit))
        return found["false usable"] / max(found[WORTHLESS], 1) + found["false unusable"] / max(found[GOOD], 1)

    costs = np.array([cost(limit) for limit in limits])
    best = limits[costs == costs.min()]
    return float(best[len(best) // 2])


def by_one_number(rows: Iterable[dict[str, Any]], fact: str, limit: float) -> list[dict[str, Any]]:
    """The rows, judged by one fact alone; what is unknown is unusable."""

    def level(value: float | None) -> str:
        return USABLE if value is not None and value >= limit else UNUSABLE

    return [{**r, "level": level(r["facts"][fact])} for r in rows]


def judges(rows: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Name of a judge -> half -> rows as it judges them: ours, and trivial ones."""
    ours = {half: list(found.values()) for half, found in rows.items()}
    strict = {
        h: [{**r, "level": USABLE if r["level"] == USABLE else UNUSABLE} for r in found] for h, found in ours.items()
    }
    out = {
        "verdict": ours,
        "verdict, doubtful taken as unusable": strict,
        "always usable": {h: [{**r, "level": USABLE} for r in found] for h, found in ours.items()},
    }
    for fact in ("confidence", "held", "agreement"):
        limit = chosen_limit(ours[TUNE], fact)
        out[f"{fact} alone, at least {limit:.3g}"] = {h: by_one_number(found, fact, limit) for h, found in ours.items()}
    return out


def comparison(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A table of the errors of all judges, and of ours where `tiny2` never saw the photographs."""
    lines = ["| judge | " + " | ".join(f"{h}: false usable | false unusable | doubtful" for h in HALVES) + " |"]
    lines.append("|---|" + 3 * len(HALVES) * "---|")
    apart = {half: {n: r for n, r in found.items() if not n.startswith(OF_PANORAMAS)} for half, found in rows.items()}
    all_of_them = {**judges(rows), "verdict, without the panoramas": {h: list(f.values()) for h, f in apart.items()}}
    for name, halves in all_of_them.items():
        cells = []
        for half in HALVES:
            e = errors(halves[half])
            cells += [
                f"{e['false usable']} of {e[WORTHLESS]}",
                f"{e['false unusable']} of {e[GOOD]}",
                str(e["worthless doubtful"] + e["good doubtful"]),
            ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# Limits


LIMITS = {
    "AGREES": (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8),
    "DISAGREES": (0.25, 0.35, 0.4, 0.45, 0.5, 0.55, 0.65),
    "LEAST_AGREED": (0.5, 0.65, 0.7, 0.75, 0.8, 0.9),
    "LEAST_COMPARED": (0.25, 0.5, 0.75),
    "FIRM": (0.9, 0.93, 0.95, 0.97, 0.99),
    "HELD": (0.8, 0.84, 0.88, 0.92, 0.96),
    "HARDLY_HELD": (0.3, 0.4, 0.5, 0.6, 0.7),
    "FAR": (0.06, 0.08, 0.1, 0.12, 0.15),
    "DRIFT": (0.03, 0.05, 0.1),
}
"""limits of judge.py, and values to try, one limit at a time"""


def with_limit(rows: Iterable[dict[str, Any]], name: str, value: float) -> list[dict[str, Any]]:
    """The rows, judged with another value of one limit."""
    before = getattr(rules, name)
    setattr(rules, name, value)
    try:
        return [judged(r) for r in rows]
    finally:
        setattr(rules, name, before)


def limits(rows: list[dict[str, Any]]) -> str:
    """A table of the errors with other limits, one at a time. rows: of tune; a limit chosen on test would be tested on itself."""
    lines = ["| limit | false usable | false unusable | worthless doubtful | good doubtful |", "|---|---|---|---|---|"]
    for name, values in LIMITS.items():
        now = getattr(rules, name)
        for value in sorted({*values, now}):
            e = errors(with_limit(rows, name, value))
            counts = (e[k] for k in ("false usable", "false unusable", "worthless doubtful", "good doubtful"))
            text = f"**{value:g}**" if value == now else f"{value:g}"
            lines.append(f"| {name} {text} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


# Pages


def table(rows: dict[str, dict[str, Any]]) -> str:
    head = ["case", "worth", "verdict", "used of read, refused", "agreement", "held", "confidence", "extent", "ATE, m (best baseline)",
            "AbsRel (best baseline)", "reason"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, r in rows.items():
        facts = r["facts"]
        bold = (r["worth"], r["level"]) in ((WORTHLESS, USABLE), (GOOD, UNUSABLE))
        level = f"**{r['level']}**" if bold else r["level"]
        reason = r["line"].partition(": ")[2].partition(". Next")[0].replace("|", "/")
        cells = [
            name, r["worth"], level, f"{r['used']} of {r['read']}, {r['refused']}", number(facts["agreement"]), number(facts["held"]),
            number(facts["confidence"]), number(facts["extent"]), against(r["ate_m"]), against(r["abs_rel"]),
            "" if r["level"] == USABLE else reason,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def against(values: dict[str, float] | None) -> str:
    if not values:
        return "-"
    return f"{values['come_ros']:.3g} ({min(v for k, v in values.items() if k != 'come_ros'):.3g})"


def turn(case: tuple[str, str]) -> int:
    """When a case (half, name) is run: the first one of each kind, then the second ones, so that a part is a sample of all kinds."""
    number = case[1].rpartition(" ")[2]
    return int(number) if number.isdigit() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panoramas", type=Path, help="folder with panoramas, searched at any depth")
    parser.add_argument("--limits", action="store_true", help="try other limits on the cases of tune that are kept")
    parser.add_argument("--only", nargs="*", default=[], help="words of the names to run")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("out/verdict"), help="where cases are kept (default %(default)s)"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    kept = Kept(args.out, "verdict", networks=())
    if args.limits:
        tune = [row for key, row in kept.rows.items() if key.startswith(f"{TUNE}: ")]
        print(f"{len(tune)} cases\n\n{limits(tune)}")
        return
    config = Config().replace(device="cpu", threads=1)
    backbone = load_backbone(config)
    made = {half: cases(half, shared() / "data" / "real", args.panoramas) for half in HALVES}
    wanted = [
        (h, n) for h, names in made.items() for n in names if not args.only or any(word in n for word in args.only)
    ]
    for half, name in tqdm(sorted(wanted, key=turn), unit="case", disable=None):
        kept.get(f"{half}: {name}", lambda h=half, n=name: run(made[h][n](), backbone, config))  # type: ignore[misc]
    rows = {half: {n: judged(kept.rows[f"{half}: {n}"]) for h, n in wanted if h == half} for half in HALVES}
    cost = kept.get("cost", lambda: cost_ms(made[TEST]["room 0"](), backbone, config))
    about = " ".join(__doc__[__doc__.index("What a case is worth") : __doc__.index("What a run knows")].split())
    text = f"{about}\n\nThe verdict costs {cost:.1f} ms of CPU a keyframe. Measured at {', '.join(sorted(kept.commits))}.\n"
    if not args.only:
        text += f"\n## Judges\n\n{comparison(rows)}\n"
    for half, found in rows.items():
        text += f"\n## {half}: {len(found)} cases\n\n{rates(list(found.values()))}\n\n{table(found)}\n"
    print(text)
    if not args.only:
        write_result(RESULTS, "verdict", {"cost_ms": cost, "rows": rows}, text, weights=TINY)


if __name__ == "__main__":
    main()
