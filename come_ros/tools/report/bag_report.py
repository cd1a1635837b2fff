"""What `come_ros bag` reports: its table, and all that the results depend on."""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...config import Config
from ...files import shown
from ...pipeline import ReconstructionPipeline
from .comparison import comparison_text
from .tables import accuracy_lines
from .verdict import of_metrics


def weights_of(pipeline: ReconstructionPipeline) -> str:
    return pipeline.backbone.description.get("weights", "")


def provenance(source: str, config: Config, pipeline: ReconstructionPipeline) -> dict[str, Any]:
    """All that the results depend on."""
    import cv2

    versions = {
        "come_ros": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
    about: dict[str, Any] = {"source": str(source), "device": pipeline.backbone.device, "machine": platform.machine()}
    if "torch" in sys.modules:
        import torch

        versions["torch"] = str(torch.__version__)
        about["threads"] = torch.get_num_threads()
    weights = Path(weights_of(pipeline))
    if weights.is_file():
        digest = hashlib.sha256()
        with open(weights, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        about["weights"] = {"file": weights.name, "sha256": digest.hexdigest()}
    return {**about, "versions": versions, "parameters": config.to_flat()}


def size_of(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*")) if path.is_dir() else path.stat().st_size


def truth_problem(truth: dict[str, Any]) -> str:
    """Why no pose of the truth belongs to an image, with the times of both."""
    if "problem" in truth:
        return str(truth["problem"])
    (a, b), (c, d) = truth["from_to_s"], truth["images_from_to_s"]
    return (
        f"none of its {truth['poses']} poses lies within 20 ms of a used image: they are from {a:.3f} to {b:.3f} s, the images from "
        f"{c:.3f} to {d:.3f} s: --gt-offset SECONDS or auto moves them"
    )


def _refinement_row(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    refined = metrics.get("refinement")
    if not refined:
        return []
    text = f"{refined['refined']:.0%} of the frames"
    if refined["windows"]:
        text += (
            f"; {refined['landmarks']:.0f} landmarks a window, {refined['inlier_share']:.0%} of the observations fit, to "
            f"{refined['error_px']:.2f} px (medians); {metrics['timings']['window_ms']['refine']['p50']:.0f} ms a window"
        )
    return [("refined", text), *(("", f"{n} windows: {reason}") for reason, n in refined["why_not"].items())]


def _loop_rows(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    loops = metrics.get("loops")
    if not loops:
        return []
    rows = [
        (
            "loops",
            f"{loops['accepted']} closed of {loops['offered']} pairs of views compared, {loops['keyframes']} keyframes",
        )
    ]
    path, before = loops.get("trajectory"), metrics["trajectory"]
    if path and before and None not in (path["ate_rmse_m"]["come_ros"], before["ate_rmse_m"]["come_ros"]):
        ends = loops["end_point"]
        shares = [f"{ends[name]['share']:.2%}" for name in ("map", "odometry") if ends[name]["share"] is not None]
        text = f"ATE in the map {path['ate_rmse_m']['come_ros']:.3f} m, of odometry {before['ate_rmse_m']['come_ros']:.3f} m"
        rows.append(
            ("", text + (f"; end of the path off by {' and '.join(shares)} of the way" if len(shares) == 2 else ""))
        )
    return rows


def _place_rows(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    place = metrics.get("saved_map")
    if not place:
        return []
    if not place["located"]:
        return [
            (
                "saved map",
                f"not found in it: {place['compared']} pairs of views compared, most often: {place['reason']}",
            )
        ]
    text = (
        f"found in it after {place['after_s']:.1f} s and {place['looked']} keyframes, {place['keyframes']} are in it; one unit of "
        f"odometry is {place['unit']:.3g} of its"
    )
    return [("saved map", text)]


def _scale_rows(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """How long the unit is; nothing where nobody measures it."""
    scale = metrics["scale"]
    conflict = [("", f"disagreement: {scale['conflict']}")] if scale["conflict"] else []
    left_out = ", ".join(f"{n} {why}" for why, n in scale["left_out"].items())
    if scale["source"] == "none":
        return (
            [("scale", f"unknown: {left_out or 'no reading was sure enough'}")] if left_out or scale["sources"] else []
        )
    units = scale["unit"]
    text = f"{scale['metres']:.4g} m in a unit of the model, sigma {scale['sigma']:.1%}, from {scale['source']}; "
    text += (
        "odometry and map in metres"
        if units["odometry"] == "metre"
        else f"odometry in the model's unit, map in {units['map']}s"
    )
    errors = [
        f"{scale[f'error_by_{name}']:+.1%} by {name}" for name in ("depth", "path") if f"error_by_{name}" in scale
    ]
    rows = [("scale", text + (f"; off by {', '.join(errors)} of the truth" if errors else ""))]
    return [*rows, *conflict, *([("", f"not used: {left_out}")] if left_out else [])]


def table(metrics: dict[str, Any]) -> str:
    """The metrics as aligned plain text."""
    frames, stream, timings = metrics["frames"], metrics["stream"], metrics["timings"]
    dropped = ", ".join(f"{n} {reason}" for reason, n in frames["dropped"].items() if n) or "none"
    model = timings["window_ms"].get("model", {"p50": float("nan"), "p95": float("nan")})
    rows = [
        ("source", f"{shown(metrics['source'])}: {metrics['kind']}{' ' + metrics['topic'] if metrics['topic'] else ''}"),
        ("images", f"{frames['read']} read, {frames['used']} used; not used: {dropped}"),
        ("windows", f"{stream['windows']}, {stream['refused']} refused; model p50 {model['p50']:.0f} ms, p95 {model['p95']:.0f} ms"),
        *_refinement_row(metrics),
        *_loop_rows(metrics),
        *_place_rows(metrics),
        *_scale_rows(metrics),
        ("speed", f"{timings['images_per_s']:.1f} images/s, {timings['reconstruct_s']:.1f} s in all, after {timings['load_s']:.1f} s "
                  f"to load; {timings['peak_memory_mb']:.0f} MB of memory"),
        ("map", f"{metrics['map']['points']} points, one in each voxel of {metrics['map']['voxel']:g}"),
        ("model", ", ".join(metrics["model"][k] for k in ("backbone", "weights", "device", "precision"))),
    ]  # fmt: skip
    if "compare" in metrics:
        rows.append(("compare", comparison_text(metrics)))
    if metrics["stopped"]:
        rows.insert(2, ("stopped", metrics["stopped"]))
    truth = metrics["truth"]
    if frames["dropped"].get("superseded"):
        rows.insert(
            2, ("time", f"stamps jumped back {stream['jumps']} times: the results are those after the last jump")
        )
    if truth["poses"] and not truth["matched"]:
        rows.append(("truth", truth_problem(truth)))
    elif "offset_s" in truth:
        found = (
            f", found with a correlation of {truth['offset_correlation']:.2f}" if "offset_correlation" in truth else ""
        )
        rows.append(("truth", f"its stamps are moved by {truth['offset_s']:.3f} s{found}"))
    if metrics["depth_topic"]:
        rows.append(("depth", f"scored against {metrics['depth_topic']}"))
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:{width}}{text}" for name, text in rows]
    scored = any(metrics[kind] for kind in ("depth", "trajectory", "rotation"))
    scores = accuracy_lines(metrics) if scored else ["(no truth to score against: see --gt)"]
    return "\n".join([*lines, "", *scores, "", f"verdict: {of_metrics(metrics).line}"])
