"""What a training command says at its end: whether the result is better than what is there without it, and the next command."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...evaluation.baselines import LINES
from ...progress import is_quiet

ALIKE = 0.01  # relative; smaller differences of validation scores are noise


def tell(lines: Iterable[str]) -> None:
    """Prints them to standard error, unless --quiet is given: standard output holds the result."""
    if not is_quiet():
        print(*lines, sep="\n", file=sys.stderr)


def of_results(folder: str) -> list[str]:
    """After bag and demo."""
    return [f"next: come_ros view {folder}"]


def _compared(ours: float, other: float, larger_is_better: bool) -> str:
    """better, worse, or no better."""
    gain = ours - other if larger_is_better else other - ours
    if not math.isfinite(gain) or abs(gain) <= ALIKE * abs(other):
        return "no better"
    return "better" if gain > 0 else "worse"


def _overall(found: Iterable[str]) -> str:
    """Whether to take the new or keep the old, from what `_compared` found."""
    found = set(found)
    if "worse" in found:
        return "Better in some, worse in some: choose by what you need" if "better" in found else "Keep the one before"
    return "The new one is better" if "better" in found else "No difference that counts"


def _of(weights: str) -> str:
    """The option for the model's file; "" for the bundled model."""
    return f" --weights {weights}" if weights else ""


def of_predictor(path: str, steps: int, spearman: float, bundled: float | None, weights: str = "") -> list[str]:
    """After distill. spearman: rank correlation with the model's confidence on validation windows; bundled: of the predictor that
    ships for these weights, on the same windows, None if there is none. weights: the model's file, "" for the bundled model."""
    line = f"rank correlation with the model's confidence: {spearman:.3f}"
    if bundled is not None:
        how = _compared(spearman, bundled, larger_is_better=True)
        line += f"; the bundled predictor has {bundled:.3f} on the same windows, so this one is {how}"
        if how != "better":
            line += f": train longer, with --resume and --steps above {steps}"
    elif spearman < 0.1:
        line += f", hardly better than chance (0): train longer, with --resume and --steps above {steps}"
    return [line, f"next: come_ros eval{_of(weights)} --accelerator come:predictor={path}"]


def of_model(
    validation: Mapping[str, float], output: str, before: tuple[str, Mapping[str, float]] | None = None
) -> list[str]:
    """After train. validation: scores of rooms, see evaluation.rooms.score. before: what the weights are that were there before, in
    words, and their scores of the same rooms; None if there are none."""
    depth, constant = validation["delta"], max(validation["constant delta"], validation["mean map delta"])
    rotation, still = validation["rotation_deg"], validation["identity rotation_deg"]
    found = {
        f"depth (delta {depth:.3f}, best trivial baseline {constant:.3f})": _compared(depth, constant, True),
        f"rotation ({rotation:.2f} deg, no rotation {still:.2f} deg)": _compared(rotation, still, False),
    }
    line = "against trivial baselines on unseen rooms: " + "; ".join(f"{what}: {how}" for what, how in found.items())
    if all(how != "better" for how in found.values()):
        line += f". Nothing has been learned yet: train longer, with -o {output} --resume"
    lines = [line]
    if before is not None:
        name, old = before
        found = {
            f"depth (delta {depth:.3f}, before {old['delta']:.3f})": _compared(depth, old["delta"], True),
            f"rotation ({rotation:.2f} deg, before {old['rotation_deg']:.2f} deg)": _compared(
                rotation, old["rotation_deg"], False
            ),
        }
        about = "; ".join(f"{what}: {how}" for what, how in found.items())
        lines.append(f"against {name}, on the same rooms: {about}. {_overall(found.values())}")
    weights = f"{output}/model.safetensors"
    return [*lines, f"next: come_ros train -o {output} --export {weights} && come_ros eval --weights {weights}"]


LONG_RUN = {
    "depth": ("delta", "", 3, True, ("constant delta", "mean map delta")),
    "rotation": ("rotation_deg", " deg", 2, False, ("no rotation_deg",)),
    "direction of motion": ("direction_deg", " deg", 0, False, tuple(LINES)),
}
"""what a long run is judged by: figure, unit, decimals, whether larger is better, trivial baselines"""


def of_long_run(
    scores: Mapping[str, Any],
    trivial: Mapping[str, Any],
    before: tuple[str, Mapping[str, Any]],
    step: int,
    variant: str,
    output: str,
) -> list[str]:
    """After train of a variant with a stem. scores, trivial: of the best checkpoint and of trivial baselines, by source, see
    training.judge. before: what the weights are that were there before, in words, and their scores. step: of the best checkpoint."""
    name, old = before
    lines, baselines, overall = [f"best checkpoint: step {step}, which --export writes"], list[str](), list[str]()
    for source, null in trivial.items():
        about = []
        for what, (figure, unit, digits, larger, nulls) in LONG_RUN.items():
            ours, theirs = (float(s[source].get(figure, math.nan)) for s in (scores, old))
            known = [null[n] for n in nulls if math.isfinite(null.get(n, math.nan))]
            if not (known and math.isfinite(ours)):
                continue
            best = (max if larger else min)(known)
            how, least = _compared(ours, theirs, larger), _compared(ours, best, larger)
            overall.append(how)
            baselines.append(least)
            about.append(
                f"{what} {ours:.{digits}f}{unit}, before {theirs:.{digits}f}: {how} (best trivial baseline {best:.{digits}f}: {least})"
            )
        lines.append(f"{source}: {'; '.join(about)}")
    lines.append(f"against {name}, on the same windows: {_overall(overall)}")
    if "better" not in baselines:
        lines.append(f"Nothing has been learned yet: train longer, with -o {output} --resume and more --steps")
    weights = f"{output}/model.safetensors"
    export = f"come_ros train --variant {variant} -o {output} --export {weights}"
    return [*lines, f"next: {export} && come_ros eval --weights {weights}"]


def of_networks(path: str, scores: Mapping[str, float], weights: str = "") -> list[str]:
    """After train-pace. scores: means of pace_scores.evaluate for the networks "refined". weights: as of_predictor."""
    ours, chance = scores["refined, restored"], scores["refined, at random"]
    how = _compared(ours, chance, larger_is_better=False)
    line = (
        f"change of depth: {ours:.4f}, with random patches {chance:.4f}: the learned choice is {how} than a random one"
    )
    line = line.replace("no better than", "not distinguishable from") if how == "no better" else line
    if how != "better":
        line += "; train longer, with more --steps and --refine-steps"
    return [line, f"next: come_ros eval{_of(weights)} --accelerator pace:pace={path}"]


def of_layer_plan(path: str, weights: str, changes: Sequence[Mapping[str, float]] | None = None) -> list[str]:
    """After calibrate. weights: the file that was measured, "" for the bundled model. changes: of the new plan and of the one that held
    before, `depth`, the change of depth against the dense model, and `read`, the share of the keys that is read; empty if the plans are
    the same, None if they were not compared."""
    lines = []
    if changes is not None and not changes:
        lines = ["the plan that held before is the same: nothing changes"]
    elif changes:
        (depth, old_depth), (read, old_read) = ([each[name] for each in changes] for name in ("depth", "read"))
        found = {
            f"depth changes by {depth:.4f} (before {old_depth:.4f})": _compared(depth, old_depth, False),
            f"{read:.0%} of the keys are read (before {old_read:.0%})": _compared(read, old_read, False),
        }
        about = "; ".join(f"{what}: {how}" for what, how in found.items())
        lines = [f"against the dense model: {about}. {_overall(found.values())}"]
    return [*lines, f"next: come_ros eval{_of(weights)} --accelerator good_token_hunting:layer_plan={path}"]


def of_adapted(path: str, verdict: Mapping[str, Any]) -> list[str]:
    """After adapt. verdict: of report.adapted."""
    if verdict["level"] == "better":
        return [f"next: come_ros bag RECORDING -o OUT --weights {path}"]
    if verdict["level"] == "mixed":
        return [
            f"next: compare both on a recording that it was not taught: come_ros bag RECORDING -o OUT --weights {path}, and without"
        ]
    return ["keep the weights before: record more of the place, with more motion and texture, and adapt again"]
