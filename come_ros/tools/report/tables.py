"""Metrics of a run as aligned plain text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TOO_SHORT = 1.5  # two scales that differ by more than this are different
MODEL_KEYS = ("backbone", "weights", "device", "precision", "resolution")


def table(metrics: Mapping[str, Any]) -> str:
    """The metrics as aligned plain text."""
    frames, latency, rate = metrics["frames"], metrics["latency_ms"], metrics["rate_hz"]
    dropped = ", ".join(f"{n} {reason}" for reason, n in frames["dropped"].items() if n) or "none"
    rows = [
        ("frames", f"{frames['bag']} in the bag, {frames['sent']} sent, {frames['received']} received, "
                   f"{frames['used']} used, {frames['pending']} pending"),
        ("  dropped", dropped),
        ("  counts consistent", "yes" if frames["balanced"] else "NO: received is not used + pending + dropped"),
        ("messages", ", ".join(f"{n} {topic}" for topic, n in metrics["messages"].items())),
    ]  # fmt: skip
    if metrics["run"]["tf_from_odometry"]:
        rows.append(("", "/tf was written by the recorder from ~/odometry: without tf2_msgs the node publishes none"))
    for topic, values in latency.items():
        ms = "n/a" if values is None else f"p50 {values['p50']:.0f} ms, p95 {values['p95']:.0f} ms"
        rows.append((f"latency {topic}", f"{ms} from image sent to result received"))
    rows.append(("rate", f"{_text(rate['input'], 1)} images/s in, {_text(rate['output'], 1)} results/s out"))
    model = metrics["model"]
    rows.append(("model", ", ".join(model[k] for k in MODEL_KEYS if model[k])))
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:{width}}{text}" for name, text in rows]
    return "\n".join([*lines, "", *accuracy_lines(metrics)])


def accuracy_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Depth, trajectory and rotation errors next to their trivial baselines, as aligned plain text."""
    depth, path, turn = metrics["depth"], metrics["trajectory"], metrics["rotation"]
    header = ("error against the truth", "come_ros", "trivial baselines (without the images)")
    rows: list[tuple[str, str, str]] = []
    for key, label in (("per_frame", "scaled per frame"), ("per_sequence", "scaled once")):
        for name, title in (("abs_rel", f"depth AbsRel, {label}"), ("delta", f"depth delta < 1.25, {label}")):
            rows.append((title, *_pair(depth and {k: v[name] for k, v in depth[key].items()}, 3)))
    for key, title in (("ate", "trajectory ATE RMSE"), ("rpe_translation", "translation per step (RPE)")):
        for suffix, label in (("", "Sim(3)"), ("_se3", "SE(3)")):
            rows.append((f"{title}, {label}, m", *_pair(path and path[f"{key}{suffix}_rmse_m"], 3)))
    rows.append(("rotation, median per step, deg", *_pair(turn and turn["median_deg"], 2)))
    rows.append(("rotation, RMSE per step (RPE), deg", *_pair(turn and turn["rmse_deg"], 2)))
    rows = [row for row in rows if row[1:] != ("n/a", "n/a")]  # without ground truth
    widths = [max(len(row[i]) for row in [header, *rows]) + 2 for i in range(2)]
    lines = [f"{a:{widths[0]}}{b:{widths[1]}}{c}" for a, b, c in (header, *rows)]
    if depth:
        share = f"{100 * depth['coverage']:.0f} % of the truth's pixels were published"
        source = depth["mean_depth_map"]
        lines.append(f"(depth: {share}, and only those count, for the baselines too; mean depth map of {source})")
    if path:
        remark = (
            "ATE, Sim(3): rotation and scale are fitted, so 'not moving' is the worst possible path, and a straight line or a random "
            "walk may win; each has its best scale"
        )
        lines.append(f"(path of {path['length_m']:.2f} m; {remark})")
        if path.get("short") is not None:
            lines.append(f"({path_text(path)})")
    if not (depth or path):
        lines.append("(the bag holds no ground truth: neither depth nor path)")
    return lines


def path_text(path: Mapping[str, Any]) -> str:
    """Both scales of trajectory_scores with a depth_scale, and their ratio, in words."""
    short, said = path["short"], "consistent with the depth"
    if short > TOO_SHORT or short < 1 / TOO_SHORT:
        said = (
            f"{short:.3g} times too short for the depth"
            if short > 1
            else f"{1 / short:.3g} times too long for the depth"
        )
    return (
        f"depth is scaled x{path['depth_scale']:.3g} to the truth, the path x{path['scale']:.3g}: path {said}; under the scale of depth "
        f"it has {path['length_ratio']:.3g} of the true length"
    )


def _pair(values: Mapping[str, float] | None, digits: int) -> tuple[str, str]:
    """Our value and those of the trivial baselines."""
    if not values:
        return "n/a", "n/a"
    others = ", ".join(f"{name} {_text(v, digits)}" for name, v in values.items() if name != "come_ros")
    return _text(values["come_ros"], digits), others


def _text(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def for_json(value: Any) -> Any:
    """The same for JSON: five digits, None for non-finite values."""
    if isinstance(value, dict):
        return {k: for_json(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [for_json(v) for v in value]
    if isinstance(value, float):
        return round(value, 5) if np.isfinite(value) else None
    return value
