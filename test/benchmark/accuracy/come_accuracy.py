"""What Co-Me costs in accuracy, on the frozen test rooms and on recordings: against the dense model, random groups, its own variants.

python test/benchmark/accuracy/come_accuracy.py [--source rooms --source FOLDER ...] [--predictor NAME=FILE ...] [--windows 64]
-> results/come_accuracy.json and .md

`come_ros eval --frontier` holds Co-Me against other accelerators and trivial baselines; here are its own parts, one by one.
Every window is 4 frames of a source at the model's own size, or at --side. Depth is scaled per window by the median ratio. "kept" counts
only the pixels that the variant did not merge, for dense too. Intervals: 95 %, bootstrap over windows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.stamped import TINY_COME, write_result

from come_ros.accelerators import CoMe, NoAccelerator, Random
from come_ros.accelerators.come import merged_patches
from come_ros.accelerators.confidence import load_predictor, predictor_next_to
from come_ros.accelerators.random import RandomConfidence
from come_ros.backbones.checkpoint import bundled_weights, load_vggt
from come_ros.camera.preprocess import PlainSizes
from come_ros.config import Config
from come_ros.evaluation import depth_errors, paired_difference, relative_pose_errors
from come_ros.evaluation.window import WindowTruth
from come_ros.kernels import group_members
from come_ros.tools.eval.sources import ROOMS, Cut, sources_of

RESULTS = Path(__file__).parent / "results"


class Teacher(torch.nn.Module):
    """The best there can be: the dense model's own confidence. Set before each window."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.confidence


class PickOne(CoMe):
    """Instead of the mean of a group, its middle patch alone."""

    def compress(self, tokens: Any, plan: Any, site: str) -> Any:
        if plan is None:
            return tokens, plan
        short, plan = super().compress(tokens, plan, site)
        members, _ = group_members(plan.grid, plan.group, tokens.x.device)
        patches = plan.grid[0] * plan.grid[1]
        middle = members[(plan.source - patches).clamp_min(0), members.shape[1] // 2]
        picked = torch.where(plan.source >= patches, middle, plan.source)
        x = tokens.x.flatten(0, 1)
        x = torch.cat(
            (x[:, : tokens.special], x[:, tokens.special :].gather(1, picked[..., None].expand(-1, -1, x.shape[2]))), 1
        )
        return short._replace(x=x.view_as(short.x)), plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictor", action="append", default=[], metavar="NAME=FILE", help="others to compare with")
    parser.add_argument(
        "--source", action="append", help="rooms, or the path of a recording with depth; may be repeated"
    )
    parser.add_argument("--windows", type=int, default=64, help="of each source")
    parser.add_argument("--side", type=int, default=0, help="longer side of the images, px (default: the model's own)")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = load_vggt(bundled_weights()).eval()
    args.side = args.side or model.native_side
    bundled, block = load_predictor(predictor_next_to(bundled_weights()), model.shape)
    teacher = Teacher()
    variants: dict[str, Any] = {}
    for p in (0.25, 0.5, 0.75):
        for group in ((2, 2), (3, 3)):
            at = {"ratio": p, "group": group}
            name = f"p={p:g} {group[0]}x{group[1]}"
            variants[f"come {name}"] = CoMe(bundled, block, **at)
            variants[f"random {name}"] = Random(RandomConfidence(model.shape.encoder_width), block, **at)
    for group in ((2, 2), (3, 3)):
        at = {"ratio": 0.5, "group": group}
        name = f"p=0.5 {group[0]}x{group[1]}"
        variants[f"teacher's mask {name}"] = CoMe(teacher, block, **at)
        variants[f"no bias {name}"] = CoMe(bundled, block, bias=False, **at)
        variants[f"pick one {name}"] = PickOne(bundled, block, **at)
        variants[f"per_layer {name}"] = CoMe(bundled, block, mode="per_layer", **at)
        variants[f"edge vote 1 {name}"] = CoMe(bundled, block, edge_weight=1.0, **at)
        variants[f"edge vote 3 {name}"] = CoMe(bundled, block, edge_weight=3.0, **at)
        variants[f"edges alone {name}"] = CoMe(bundled, block, edge_weight=100.0, **at)
        variants[f"window budget {name}"] = CoMe(bundled, block, budget="window", **at)
        for given in args.predictor:
            label, _, path = given.partition("=")
            other, at_block = load_predictor(path, model.shape)
            variants[f"{label} {name}"] = CoMe(other, at_block, **at)

    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for label, truth in windows(args.source or [ROOMS], args.windows, args.side, model.patch):
        rows = found.setdefault(label, {"dense": []} | {name: [] for name in variants})
        score(model, truth, variants, rows, teacher)
    result = {label: {name: summary(r, rows["dense"]) for name, r in rows.items()} for label, rows in found.items()}
    name = "come_accuracy" + ("" if args.side == model.native_side else f"_{args.side}")
    settings = {"windows": {label: len(rows["dense"]) for label, rows in found.items()}, "side": args.side}
    text = "\n".join(f"## {label}, {len(found[label]['dense'])} windows\n\n{table(r)}" for label, r in result.items())
    write_result(RESULTS, name, {**settings, "sources": result}, text, weights=TINY_COME)
    print(text)


def windows(sources: list[str], most: int, side: int, patch: int) -> Iterator[tuple[str, WindowTruth]]:
    """Of each source, with its label, those whose depth is known."""
    for source in sources_of(sources, Config(), None, None):
        for truth in tqdm(
            source.windows(Cut(most=most), PlainSizes(patch, side)),
            desc=source.label,
            total=source.count(Cut(most=most)),
        ):
            if truth.depth is not None:
                yield source.label, truth


def score(model: Any, truth: WindowTruth, variants: dict[str, Any], rows: dict[str, Any], teacher: Any = None) -> None:
    """Appends what the dense model and each variant say of a window."""
    images = torch.from_numpy(truth.images).permute(0, 3, 1, 2)[None].float() / 255
    with torch.inference_mode():
        dense, _ = model(images, NoAccelerator(), ("camera", "depth"))
        if teacher is not None:
            teacher.confidence = torch.nn.functional.avg_pool2d(dense["depth_conf"], model.patch)
        rows["dense"].append(errors(dense, truth, None, None))
        for name, accelerator in variants.items():
            out, trunk = model(images, accelerator, ("camera", "depth"))
            merged = merged_patches(trunk.plan).repeat_interleave(model.patch, 1).repeat_interleave(model.patch, 2)
            row = errors(out, truth, ~merged.numpy(), dense)
            rows[name].append(row | {"kept_tokens": accelerator.kept_ratio(trunk.plan)})


def errors(
    out: dict[str, Any], truth: WindowTruth, kept: np.ndarray | None, dense: dict[str, Any] | None
) -> dict[str, float]:
    depth = out["depth"][0].numpy()
    whole = depth_errors(depth, truth.depth)
    row = {"abs_rel": whole.abs_rel, "delta": whole.delta, "rotation_deg": np.nan, "direction_deg": np.nan}
    if truth.world_from_camera is not None:
        poses = out["world_from_camera"][0].double().numpy()
        rotation, direction, _ = relative_pose_errors(poses, truth.world_from_camera)
        row["rotation_deg"] = float(np.median(rotation))
        row["direction_deg"] = float(np.median(known)) if len(known := direction[np.isfinite(direction)]) else np.nan
    if kept is not None and dense is not None:
        base = dense["depth"][0].numpy()
        row["kept_abs_rel"] = depth_errors(depth, truth.depth, kept).abs_rel
        row["kept_dense_abs_rel"] = depth_errors(base, truth.depth, kept).abs_rel
        row["to_dense"] = depth_errors(depth, base).abs_rel
    return row


def summary(rows: list[dict[str, float]], dense: list[dict[str, float]]) -> dict[str, float | list[float]]:
    out: dict[str, float | list[float]] = {k: middle(k, [r[k] for r in rows]) for k in rows[0]}
    worse = paired_difference(*(np.array([r["abs_rel"] for r in x]) for x in (rows, dense)), relative=True)
    out["worse_than_dense"], out["worse_than_dense_95"] = worse.value, [worse.low, worse.high]
    return out


def middle(name: str, values: list[float]) -> float:
    """Median of angles, mean of all else, over windows where it has a meaning; kept pixels there may be none."""
    known = np.array(values)[np.isfinite(values)]
    return float("nan") if not len(known) else float(np.median(known) if name.endswith("_deg") else known.mean())


def table(result: dict[str, Any]) -> str:
    lines = ["| variant | kept tokens | AbsRel | worse than dense (95 %) | delta < 1.25 | AbsRel on kept pixels (dense there) | "
             "depth to dense | rotation, deg |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, r in result.items():
        low, high = r["worse_than_dense_95"]
        if name == "dense":
            middle, kept, to = "", "", ""
        else:
            middle = f"{r['worse_than_dense']:+.1%} ({low:+.1%} to {high:+.1%})"
            kept = f"{r['kept_abs_rel']:.4f} ({r['kept_dense_abs_rel']:.4f})"
            to = f"{r['to_dense']:.4f}"
        share = f"{r.get('kept_tokens', 1):.0%}"
        lines.append(
            f"| {name} | {share} | {r['abs_rel']:.4f} | {middle} | {r['delta']:.3f} | {kept} | {to} | {r['rotation_deg']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
