"""Scores of PaceVGGT's networks compared with other choices: random, even, and by the attention itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from .data import Batch
from .pace import said, teach


def choices(target: Any, seed: int) -> dict[str, Any]:
    """Other choices of patches, as scores (B, S, h, w): random, and by the attention that the scorer should predict."""
    import torch

    lot = torch.rand(target.shape, generator=torch.Generator().manual_seed(seed)).to(target.device)
    return {"at random": lot, "by attention": target}


def evaluate(
    model: Any, nets: dict[str, tuple[Any, Any]], how: dict[str, Any], windows: list[Batch]
) -> list[dict[str, float]]:
    """Scores by name, for each window. nets: name -> (scorer, restorer); how: Pace's parameters.

    "{name}, {choice}": mean |log depth / depth of the full model|, where choice is "copied" (kept patches copied in place of dropped ones),
    "restored", and, restored as well, "at random", "evenly", "by attention"; with " abs_rel" appended, depth against the truth where
    it is known, "dense abs_rel" that of the full model. "{name} spearman": rank correlation of score and attention target, frame by frame;
    "{name} spearman_error": of score and the change of each patch's depth if random patches are dropped (with patches chosen by the
    score itself this would be biased, since kept patches change little).
    """
    import torch
    import torch.nn.functional as F

    from ..accelerators import NoAccelerator, Pace
    from ..evaluation import depth_errors

    rows = []
    with torch.no_grad():
        for number, batch in enumerate(windows):
            lesson = teach(model, batch, heads=False)
            images = batch["images"].float() / 255
            dense = model(images, NoAccelerator(), ("depth",))[0]["depth"]
            row: dict[str, float] = {}

            def depth_of(score: Any, restorer: Any, images: Any = images, **more: Any) -> Any:
                return model(images, Pace(said(score), restorer, **{**how, **more}), ("depth",))[0]["depth"]

            def note(name: str, depth: Any, row: Any = row, dense: Any = dense, batch: Any = batch) -> None:
                row[name] = float((depth / dense).log().abs().mean())
                if "depth" in batch:
                    row[f"{name} abs_rel"] = depth_errors(
                        depth[0].cpu().numpy(), batch["depth"][0].cpu().numpy()
                    ).abs_rel

            note("dense", dense)
            others = choices(lesson.target, number)
            for name, (scorer, restorer) in nets.items():
                score = scorer(lesson.features)
                note(f"{name}, copied", depth_of(score, None))
                note(f"{name}, restored", depth_of(score, restorer))
                at_random = depth_of(others["at random"], restorer, spread=0.0)
                note(f"{name}, at random", at_random)
                note(f"{name}, evenly", depth_of(torch.zeros_like(score), restorer, spread=1.0))
                note(f"{name}, by attention", depth_of(others["by attention"], restorer, spread=0.0))
                row[f"{name} spearman"] = rank_correlation(score, lesson.target)
                change = F.avg_pool2d((at_random / dense).log().abs(), model.patch)
                row[f"{name} spearman_error"] = rank_correlation(score, change)
            rows.append(row)
    return rows


def rank_correlation(a: Any, b: Any) -> float:
    """Mean over frames of that of (B, S, h, w) and (B, S, h, w); NaN if all are constant."""
    from ..evaluation import spearman

    pairs = zip(a.flatten(0, 1).cpu().numpy(), b.flatten(0, 1).cpu().numpy(), strict=True)
    found = [spearman(x.ravel(), y.ravel()) for x, y in pairs]
    known = [f for f in found if np.isfinite(f)]
    return float(np.mean(known)) if known else float("nan")


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.nanmean([row[name] for row in rows])), 5) for name in rows[0]}


def comparison(rows: list[dict[str, float]], how: dict[str, Any]) -> str:
    """Markdown: the networks of both stages, and other choices, at the same budget."""
    from ..evaluation import interval, paired_difference

    def of(name: str) -> np.ndarray:
        return np.array([row.get(name, np.nan) for row in rows])

    truth = "dense abs_rel" in rows[0]
    lines = [
        f"{len(rows)} validation windows; {how['ratio']:.0%} of the patches dropped, spread {how['spread']:g}. Change: mean "
        "|log depth / depth of the full model|; differences to a random choice with the same restorer are paired, intervals 95 %.", "",
        "| networks | choice, rebuilt by | change of depth | - random | AbsRel | - random |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    if truth:
        lines.append(f"| full model | all | | | {of('dense abs_rel').mean():.4f} | |")
    titles = {"copied": "score, copying", "restored": "score, restorer", "at random": "at random, restorer", "evenly": "evenly, restorer",
              "by attention": "by the attention target, restorer"}  # fmt: skip
    for key in [k for k in rows[0] if ", " in k and not k.endswith("abs_rel")]:
        name, _, choice = key.partition(", ")
        cells = [name, titles[choice]]
        for suffix in ("", " abs_rel") if truth else ("",):
            ours, lot = of(key + suffix), of(f"{name}, at random" + suffix)
            middle, apart = interval(ours), paired_difference(ours, lot)
            cells.append(f"{middle.value:.4f} ({middle.low:.4f} to {middle.high:.4f})")
            cells.append("" if choice == "at random" else f"{apart.value:+.4f} ({apart.low:+.4f} to {apart.high:+.4f})")
        lines.append("| " + " | ".join(cells + [""] * (6 - len(cells))) + " |")
    lines += [
        "",
        "| networks | Spearman with the attention target | with the change of each patch's depth |",
        "|---|---|---|",
    ]
    for name in dict.fromkeys(k.removesuffix(" spearman") for k in rows[0] if k.endswith(" spearman")):
        cells = [
            f"{v.value:.3f} ({v.low:.3f} to {v.high:.3f})"
            for v in (interval(of(f"{name} {k}")) for k in ("spearman", "spearman_error"))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
