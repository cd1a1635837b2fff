"""Runs whole recordings through the whole pipeline, without and with the bundle: the cost of token reduction after refinement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import progress
from ...camera.preprocess import in_model_pixels
from ...config import MIN_SIDE, Config
from ...datasets.stamps import NearestDepth, matched
from ...errors import Cancelled
from ...evaluation import ate_baselines, ate_rmse, rpe_rmse
from ...evaluation.recordings import DepthScores, rotation_scores
from ...geometry import inverse
from ...pipeline import ReconstructionPipeline
from ...types import F64
from .sources import Source
from .variants import DENSE, RESOLUTION, WITHOUT_WINDOW, Variant

MODES = ("none", "bundle")
"""of refine.mode"""
METRICS = {
    "ate": ("ATE, Sim(3)", 3), "rotation_deg": ("rotation of a step, deg (median)", 2), "step": ("translation of a step (RMS)", 4),
    "abs_rel_once": ("AbsRel, scaled once", 3),
}  # fmt: skip
"""metric -> (title, digits); lower is better"""
LEVEL = 0.05  # within this share of the dense model's error a variant counts as equally good


def runnable(variants: Sequence[Variant]) -> list[Variant]:
    """The variants that the pipeline can run: all except the baselines without a window, and images below its least size."""
    return [
        v
        for v in variants
        if v.family not in WITHOUT_WINDOW and (v.family != RESOLUTION or max(v.backbone.size) >= MIN_SIDE)
    ]


def whole(source: Source, variants: Sequence[Variant], stopped: Any) -> dict[str, Any] | None:
    """ "variants": variant -> mode -> see `scored`; "baselines": baselines without a model, see `baselines`. None if no true path
    is known. Raises Cancelled, DatasetError."""
    with source.open() as sequence:
        truth = source.truth(sequence)
    if len(truth) < 3:
        return None
    rows: dict[str, dict[str, Any]] = {}
    every: dict[int, F64] = {}
    depth = DepthScores()
    for variant in runnable(variants):
        for mode in MODES:
            config, backbone = of_pipeline(variant, mode)
            poses, found, counts = followed(source, config, backbone, f"{variant.name}, {mode}", stopped)
            real = matched(sorted(poses), truth)
            rows.setdefault(variant.name, {})[mode] = scored(poses, real, found) | counts
            if len(real) > len(every):
                every, depth = real, found
    return {"baselines": baselines(every, depth), "variants": rows}


def of_pipeline(variant: Variant, mode: str) -> tuple[Config, Any]:
    """How the pipeline runs that variant: smaller images are those that input.max_side makes. Poses are of the keyframes."""
    config = variant.config.replace(**{"refine.mode": mode, "odometry.rate": "keyframe"})
    if variant.family != RESOLUTION:
        return config, variant.backbone
    return config.replace(**{"input.max_side": max(variant.backbone.size)}), variant.backbone.dense


def followed(
    source: Source, config: Config, backbone: Any, name: str, stopped: Any
) -> tuple[dict[int, F64], DepthScores, dict[str, Any]]:
    """Stamp -> odom_from_camera of every used frame; its depth against the truth; used and read frames, refused windows, and the shares of
    keyframes that the bundle vouches for and of tokens that are kept. Raises Cancelled, DatasetError."""
    pipeline = ReconstructionPipeline(config, backbone)
    poses: dict[int, F64] = {}
    scores, read, refined, kept = DepthScores(), 0, 0.0, []
    with source.open() as sequence, source.open() as depths:
        true_depth = NearestDepth(depths.iter_depth())

        def frames() -> Any:
            nonlocal read
            for frame in progress.bar(sequence.iter_frames(), total=sequence.count, desc=f"whole, {name}", unit="img"):
                if stopped():
                    raise Cancelled("on request")
                read += 1
                yield frame

        for submap in pipeline.run(frames(), stopped):
            refined += submap.refinement.refined * len(submap)
            kept += [submap.kept_ratio] * len(submap)
            for frame, pose, ours in zip(submap.frames, submap.odom_from_camera, submap.depth, strict=True):
                poses[frame.stamp_ns] = pose.copy()
                real = true_depth.at(frame.stamp_ns)
                if real is not None:
                    scores.add(ours, in_model_pixels(real, ours.shape))
    used = len(poses)
    counts = {"used": used, "read": read, "refused": pipeline.counts["refused"],
              "refined": refined / used if used else None, "kept_tokens": float(np.mean(kept)) if kept else None}  # fmt: skip
    return poses, scores, counts


def scored(poses: dict[int, F64], truth: dict[int, F64], depth: DepthScores) -> dict[str, Any]:
    """METRICS, None where unknown, abs_rel, scaled frame by frame, and the shares of pixels within 25 %, delta_once and delta."""
    out: dict[str, Any] = dict.fromkeys((*METRICS, "abs_rel", "delta_once", "delta"))
    of_depth = depth.result()
    if of_depth is not None:
        out["abs_rel_once"] = of_depth["per_sequence"]["come_ros"]["abs_rel"]
        out["abs_rel"] = of_depth["per_frame"]["come_ros"]["abs_rel"]
        out["delta_once"] = of_depth["per_sequence"]["come_ros"]["delta"]
        out["delta"] = of_depth["per_frame"]["come_ros"]["delta"]
    if len(truth) < 3:
        return out
    stamps = sorted(truth)
    ours, real = (np.stack([p[t] for t in stamps]) for p in (poses, truth))
    turns = rotation_scores(poses, truth)
    assert turns is not None
    return out | {
        "ate": ate_rmse(ours, real),
        "step": rpe_rmse(ours, real)[0],
        "rotation_deg": turns["median_deg"]["come_ros"],
    }


def baselines(truth: dict[int, F64], depth: DepthScores) -> dict[str, dict[str, float | None]]:
    """Baseline -> METRICS that it can be scored by, on the frames of the run that used the most of them."""
    out: dict[str, dict[str, float | None]] = {}
    if len(truth) >= 3:
        real = np.stack([truth[t] for t in sorted(truth)])
        ate = ate_baselines(real)
        steps = (inverse(real[:-1]) @ real[1:])[:, :3, 3]
        turns = rotation_scores(truth, truth)
        assert turns is not None
        median = turns["median_deg"]
        out["straight line"] = {"ate": ate["straight line"]}
        out["random walk (mean)"] = {"ate": ate["random walk"]}
        out["random walk (best 5 %)"] = {"ate": ate["best 5 % of random walks"]}
        out["no motion"] = {"ate": ate["not moving"], "rotation_deg": median["no rotation"], "step": _rms(steps)}
        out["constant velocity"] = {
            "rotation_deg": median["constant rotation"],
            "step": _rms(steps - steps.mean(axis=0)),
        }
    of_depth = depth.result()
    for name in ("constant depth", "mean depth map") if of_depth is not None else ():
        assert of_depth is not None
        out[name] = {"abs_rel_once": of_depth["per_sequence"][name]["abs_rel"]}
    return out


def compared(found: dict[str, Any]) -> dict[str, Any]:
    """mode -> metric -> variant -> its error over that of the dense model: "ratio", the geometric mean over recordings, "low" and "high"
    the least and largest, "worse" and "better" in how many it differs by more than LEVEL, of so many "recordings"."""
    out: dict[str, Any] = {}
    names = list(dict.fromkeys(v for about in found.values() for v in about["variants"]))
    for mode in MODES:
        for metric in METRICS:
            for name in names:
                ratios = []
                for about in found.values():
                    ours, base = (about["variants"].get(v, {}).get(mode, {}).get(metric) for v in (name, DENSE))
                    if ours is not None and base:
                        ratios.append(ours / base)
                if ratios and name != DENSE:
                    out.setdefault(mode, {}).setdefault(metric, {})[name] = {
                        "ratio": float(np.exp(np.mean(np.log(ratios)))), "low": min(ratios), "high": max(ratios),
                        "worse": sum(r > 1 + LEVEL for r in ratios), "better": sum(r < 1 - LEVEL for r in ratios),
                        "recordings": len(ratios),
                    }  # fmt: skip
    return out


def _rms(vectors: F64) -> float:
    return float(np.sqrt((vectors**2).sum(axis=1).mean()))


# In words


def whole_table(about: dict[str, Any]) -> list[str]:
    """Of one recording: variants down, each metric without and with the bundle."""
    head = ["", "kept tokens", *(f"{title}: {mode}" for title, _ in METRICS.values() for mode in MODES)]
    head += [f"used of read: {mode}" for mode in MODES] + ["refined"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, modes in about["variants"].items():
        kept = modes[MODES[-1]]["kept_tokens"]
        cells = [name, "" if kept is None else f"{kept:.2f}"]
        cells += [_text(modes[mode][metric], digits) for metric, (_, digits) in METRICS.items() for mode in MODES]
        cells += [f"{modes[mode]['used']} of {modes[mode]['read']}" for mode in MODES]
        lines.append("| " + " | ".join([*cells, _text(modes["bundle"]["refined"], 2)]) + " |")
    for name, row in about["baselines"].items():
        cells = [f"*{name}*", ""]
        for metric, (_, digits) in METRICS.items():
            cells += [_text(row.get(metric), digits), ""]
        lines.append("| " + " | ".join([*cells, "", "", ""]) + " |")
    return lines


def compared_table(comparison: dict[str, Any]) -> list[str]:
    """Over all recordings: variants down, error over the dense model's without and with the bundle."""
    if not comparison.get("bundle"):
        return []
    names = list(dict.fromkeys(v for of_metric in comparison["bundle"].values() for v in of_metric))
    head = ["", *(f"{title}: {mode}" for title, _ in METRICS.values() for mode in MODES)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in names:
        cells = [name]
        for metric in METRICS:
            for mode in MODES:
                r = comparison.get(mode, {}).get(metric, {}).get(name)
                cells.append(
                    "" if r is None else f"{r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f}); worse {r['worse']}, better "
                    f"{r['better']} of {r['recordings']}"
                )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return [
        *lines,
        "",
        f"Each cell: the error over that of the dense model in the same mode, geometric mean over recordings (least to largest); in how "
        f"many recordings it is worse or better by more than {LEVEL:.0%}. A recording is one sample, and one run of it hangs on small "
        "things: what random groups lose or win by chance stands next to it.",
    ]


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
