"""The model's benchmark: dense and accelerated in turn on the same images; rows, tables and the plot."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...backbones.checkpoint import variants
from ...config import Config, with_accelerator
from ...errors import CheckpointError, ComeRosError, ConfigError, DatasetError
from ...evaluation import prediction_difference
from ...files import whole_file
from ...types import U8
from .memory import MB, added_by_passes
from .split import OWN, PARTS, WHOLE, count_flops, matmul_rate, timed, warmed

log = logging.getLogger("come_ros")

DENSE = "none"
FRAMES = [2, 4, 8, 16]
HOW = ("attention", "heads_precision", "optimize")  # parameters of the configuration: how the device does it
ALL = "all"
SEED = 0
COLUMNS = (*PARTS, WHOLE)
LONG = 3  # of the longest windows, whose exponent is given by itself


@dataclass(frozen=True)
class Wish:
    """Which model, and how it is run. weights: file, "" for the bundled one. random: this variant with random weights instead, ""
    for none. predictor: file of the accelerators, "" for the bundled one."""

    backbone: str = "vggt"
    weights: str = ""
    random: str = ""
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0
    predictor: str = ""
    attention: str = "auto"
    heads_precision: str = "fp32"
    optimize: str = "none"

    def config(self, accelerator: str = DENSE) -> Config:
        """accelerator: NAME or NAME:parameter=value,..., with parameters of the group `accelerator` or of the top. Raises ConfigError."""
        base = Config().replace(
            backbone=self.backbone,
            weights=self.weights,
            device=self.device,
            precision=self.precision,
            threads=self.threads,
            **{"accelerator.predictor": self.predictor},
            **{name: getattr(self, name) for name in HOW},
        )
        return with_accelerator(base, accelerator)

    def load(self) -> Any:
        """The TorchBackbone, dense. Raises CheckpointError or ConfigError."""
        from ...backbones import load_backbone

        if not self.random:
            return load_backbone(self.config())
        import torch

        from ...accelerators import Accelerator
        from ...backbones.checkpoint import MODELS
        from ...backbones.device import choose_device, choose_precision
        from ...backbones.torch_backbone import TorchBackbone

        if self.threads:
            torch.set_num_threads(self.threads)
        device = choose_device(self.device)
        choose_precision(self.precision, device)  # a wrong one is told before a large model is made
        with torch.device("meta"):
            model = MODELS[self.backbone](variants(self.backbone)[self.random])  # type: ignore[call-arg]
        model.to_empty(device=device)
        generator = torch.Generator(device).manual_seed(SEED)
        with torch.no_grad():
            for name, parameter in model.named_parameters():  # so that activations neither die nor explode
                if parameter.ndim > 1:
                    parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
                else:
                    parameter.fill_(0.1 if name.endswith("gamma") else float(name.endswith("weight")))
            for buffer in model.buffers():
                buffer.zero_()
        how = {name: getattr(self, name) for name in ("device", "precision", *HOW)}
        how["weights"] = f"random {self.random}"
        return TorchBackbone(self.backbone, model, Accelerator(), **how)

    def with_accelerator(self, backbone: Any, accelerator: str) -> Any:
        """`backbone`, accelerated. Raises ConfigError or CheckpointError."""
        import torch

        from ...accelerators import make_accelerator

        config = self.config(accelerator)
        made = make_accelerator(config, backbone.model, backbone.description["weights"])
        return backbone.accelerated(made.to(torch.device(backbone.device)))


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All figures so far, after each row; the rows are in "rows". Raises ConfigError, CheckpointError, DatasetError."""
    import torch
    from tqdm import tqdm

    check_counts(options)
    counts = options.frames or FRAMES
    repeats, warm_up = options.repeats or 10, options.warm_up
    wish = wish_of(options)
    names = list(dict.fromkeys([DENSE, *_named(options.accelerator or ["come"])]))
    for name in names:
        wish.config(name)  # a wrong word is told before anything slow
    backbone = wish.load()
    with tempfile.TemporaryDirectory() as folder:
        if wish.random:
            wish = dataclasses.replace(wish, predictor=random_predictor(Path(folder), backbone.model))
        models, left_out = {}, {}
        for name in names:
            try:
                models[name] = wish.with_accelerator(backbone, name)
            except CheckpointError as error:
                if ALL not in (options.accelerator or []):
                    raise
                left_out[name] = str(error)  # its own network is missing
        width, height = image_size(options.size, backbone)
        images = load_images(options.source, max(counts), width, height)
        file = Path(folder) / "images.npy"
        np.save(file, images)
        device = torch.device(backbone.device)
        rate = matmul_rate(device, getattr(torch, backbone.description["precision"]))
        result: dict[str, Any] = {
            "come_ros": __version__,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
            **backbone.description,
            "weights": os.path.basename(backbone.description["weights"]),
            "random_weights": bool(wish.random),
            "threads": torch.get_num_threads(),
            "image": [width, height],
            "source": options.source or "a rendered room",
            "repeats": repeats,
            "warm_up": warm_up,
            "limit_s": options.limit,
            "left_out": left_out,
            "matmul_gflops": rate / 1e9,
            "load_before": os.getloadavg()[0],
            "rows": [],
            "scaling": {},
        }
        total = len(counts) * len(models) * (2 + warm_up + repeats)
        with tqdm(total=total, desc="timing", unit="pass", disable=None) as bar:
            memory: dict[str, dict[int, dict[str, float]]] = {}
            for name in models if not options.no_memory and device.type != "cuda" else ():
                bar.set_postfix_str(f"memory, {name}")
                memory[name] = _own_memory(wish, name, file, counts)
            for frames in counts:
                rows = _rows(models, images[:frames], warm_up, repeats, options, rate, bool(wish.random), bar)
                for name, row in rows.items():
                    if not options.no_memory and not row["error"]:
                        on_device = device.type == "cuda"
                        row["memory"] = (
                            _device_memory(models[name], images[:frames]) if on_device else memory[name].get(frames)
                        )
                    result["rows"].append({"frames": frames, "accelerator": name, **row})
                result["load_after"] = os.getloadavg()[0]
                result["scaling"] = scaling(result["rows"])
                yield result


def _named(accelerators: Sequence[str]) -> Iterator[str]:
    """The same, ALL spelt out."""
    from ...accelerators import ACCELERATORS, COMBINATIONS

    for name in accelerators:
        yield from [n for n in [*ACCELERATORS, *COMBINATIONS] if n != DENSE] if name == ALL else [name]


def scaling(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """accelerator -> exponent b of a line log ms = a + b log frames through the medians: of the trunk and of all, over all window lengths
    and over the LONG longest; None with fewer than two of them."""
    out: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(row["accelerator"] for row in rows):
        ours = sorted((r for r in rows if r["accelerator"] == name and not r["error"]), key=lambda r: r["frames"])
        frames = np.log([r["frames"] for r in ours])
        out[name] = {}
        for kind in ("trunk", "total"):
            ms = np.log([r[f"{kind}_ms"]["median"] for r in ours])
            for label, n in (("", 0), ("_long", LONG)):
                x, y = frames[-n:], ms[-n:]
                out[name][kind + label] = float(np.polyfit(x, y, 1)[0]) if len(set(x)) > 1 else None
    return out


def check_counts(options: argparse.Namespace) -> None:
    """Raises ConfigError if a number of the command line makes no sense."""
    for name, least in (("frames", 1), ("warm_up", 0), ("threads", 0), ("limit", 0)):
        values = getattr(options, name)
        if values is not None and min(np.atleast_1d(values)) < least:
            raise ConfigError(f"--{name.replace('_', '-')} is {values}, but must be {least} or more")


def _rows(
    models: dict[str, Any],
    images: U8,
    warm_up: int,
    repeats: int,
    options: Any,
    rate: float,
    random: bool,
    bar: Any,
) -> dict[str, dict[str, Any]]:
    """Accelerator -> what was measured of it. error: why nothing was, "" if all went well. Of options: no_flops, limit."""
    import torch

    begun = time.monotonic()

    def late() -> bool:
        return 0 < options.limit < time.monotonic() - begun

    times: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    flops, predictions, errors = {}, {}, dict.fromkeys(models, "")
    blocks = {name: m.accelerator.plan_block(len(m.model.encoder_blocks())) for name, m in models.items()}
    # the dense model is split where the first of the others is, so that the parts can be compared
    blocks[DENSE] = next((b for b in blocks.values() if b is not None), None)
    x = models[DENSE].upload(images)
    for turn in range(2 + warm_up + repeats):
        counted = turn - 2 - warm_up
        if (turn == 1 and options.no_flops) or (late() and (1 < turn < 2 + warm_up or counted > 0)):
            bar.update(len(models))
            continue
        for name, model in models.items():
            bar.update()
            bar.set_postfix_str(f"{len(images)} frames, {name}")
            if errors[name]:
                continue
            try:
                if turn == 1:  # after one plain pass, so that nothing is compiled while FLOPs are counted
                    flops[name] = count_flops(model, x, blocks[name])
                    continue
                if turn == 0:
                    warmed(model, x)
                parts, out, trunk = timed(model, x, blocks[name])
                if turn == 0:
                    predictions[name] = model.download(images, out, trunk)
                elif counted >= 0:
                    times[name].append(parts)
                del out, trunk  # not kept while the next one runs
            except torch.cuda.OutOfMemoryError as error:
                errors[name] = f"out of memory: {str(error).splitlines()[0]}"
            if errors[name]:
                torch.cuda.empty_cache()
    rows = {}
    for name in models:
        if errors[name]:
            rows[name] = {"error": errors[name]}
            continue
        shares = {"kept_ratio": predictions[name].kept_ratio, "read_ratio": predictions[name].read_ratio}
        row = {"error": "", **shares, **_summary(times[name], times[DENSE])}
        if name in flops:
            trunk_flops = sum(flops[name].values()) - flops[name]["heads"]
            row["gflop"] = {part: n / 1e9 for part, n in flops[name].items()}
            row["gflop_trunk"] = trunk_flops / 1e9
            row["share_of_matmul"] = trunk_flops / (1e-3 * row["trunk_ms"]["median"]) / rate
        row["difference"] = None
        if name != DENSE and not random and not errors[DENSE]:
            row["difference"] = prediction_difference(predictions[name], predictions[DENSE])
        rows[name] = row
    return rows


def _summary(passes: list[dict[str, float]], dense: list[dict[str, float]]) -> dict[str, Any]:
    """Medians and p90 of a model's passes, and ratios to the dense model's passes just before."""
    trunk, total = (np.array([of(p) for p in passes]) for of in (_trunk, _total))
    out: dict[str, Any] = {"trunk_ms": median_p90(trunk), "total_ms": median_p90(total)}
    pairs = min(len(passes), len(dense))
    for name, ours, of in (("trunk_ratio", trunk, _trunk), ("total_ratio", total, _total)):
        ratio = ours[:pairs] / np.array([of(p) for p in dense[:pairs]])
        out[name] = float(np.median(ratio)) if pairs else None
    out["parts_ms"] = {part: float(np.median([p[part] for p in passes])) for part in COLUMNS if part in passes[0]}
    out["passes"] = len(passes)
    if WHOLE in passes[0]:  # a replayed pass has no parts
        return {**out, "own": None}
    own = np.array([sum(p[part] for part in OWN) for p in passes])
    out["own"] = {"ms": float(np.median(own)), "of_pass": float(np.median(own / total)), "of_dense": None}
    if pairs:
        out["own"]["of_dense"] = float(np.median(own[:pairs] / [_total(p) for p in dense[:pairs]]))
    return out


def _total(parts: dict[str, float]) -> float:
    return sum(parts.values())


def _trunk(parts: dict[str, float]) -> float:
    return _total(parts) - parts["heads"]


def median_p90(values: Any) -> dict[str, float]:
    return {"median": float(np.median(values)), "p90": float(np.percentile(values, 90))}


def _own_memory(wish: Wish, name: str, file: Path, frames: Sequence[int]) -> dict[int, dict[str, float]]:
    """Number of frames -> added_mb: what one pass takes beside weights and images; peak_mb: with them. Told by a process of its own."""
    try:
        return added_by_passes(dataclasses.asdict(wish), name, file, frames)
    except ComeRosError as error:  # the times are worth having all the same
        log.warning("%s", error)
        return {}


def _device_memory(model: Any, images: U8) -> dict[str, float] | None:
    """The same of a CUDA device; None if a pass does not fit."""
    import torch

    device = torch.device(model.device)
    x = model.upload(images)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        model.run(x)
    except torch.cuda.OutOfMemoryError:
        return None
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    return {"added_mb": (peak - before) / MB, "peak_mb": peak / MB}


def wish_of(options: argparse.Namespace) -> Wish:
    """Raises ConfigError if the options contradict one another."""
    how = {name: getattr(options, name) for name in ("device", "precision", "threads", *HOW) if hasattr(options, name)}
    wish = Wish(options.backbone, options.weights, **how)
    if not options.random_weights:
        if options.variant:
            raise ConfigError(
                f"--variant {options.variant} says which random weights to make, others tell it themselves: add --random-weights, or "
                f"name a file of that size with --weights instead"
            )
        return wish
    known = variants(options.backbone)
    variant = options.variant or ("tiny" if "tiny" in known else next(iter(known)))
    if options.weights:
        raise ConfigError(f"--weights {options.weights} and --random-weights: only one of them can be")
    if variant not in known:
        raise ConfigError(f"--variant is {variant!r}, but {options.backbone} has {', '.join(known)}")
    return dataclasses.replace(wish, random=variant)


def random_predictor(folder: Path, model: Any) -> str:
    """A file with a predictor that fits the model."""
    import torch

    from ...accelerators.confidence import ConfidencePredictor, default_block, save_predictor

    torch.manual_seed(SEED)
    path, width = str(folder / "predictor.safetensors"), model.encoder_width
    predictor = ConfidencePredictor(width, 32 if width < 512 else 128)  # as they come
    save_predictor(path, predictor, default_block(len(model.encoder_blocks())))
    return path


def image_size(text: str | None, backbone: Any) -> tuple[int, int]:
    """(width, height) of WxH, or of one number for a square; whole patches. Raises ConfigError."""
    patch = backbone.patch_size
    if text is None:
        side = backbone.native_side
        return side, patch * round(0.75 * side / patch)
    sides = text.lower().split("x")
    if len(sides) in (1, 2) and all(s.isdigit() for s in sides):
        width, height = int(sides[0]), int(sides[-1])
        if min(width, height) >= 2 * patch and width % patch == height % patch == 0:
            return width, height
    raise ConfigError(
        f"--size is {text!r}, but must be WIDTHxHEIGHT in px, both multiples of {patch} from {2 * patch} on, "
        f"such as {36 * patch}x{27 * patch}"
    )


def load_images(source: str | None, frames: int, width: int, height: int) -> U8:
    """(frames, height, width, 3) of a recording, or of a rendered room. Raises DatasetError."""
    import cv2

    if source is None:
        from ...datasets.rooms.rooms import render_sequence
        from ...datasets.rooms.splits import SPLIT_SEEDS, TEST_RATE_HZ

        return render_sequence(SPLIT_SEEDS["test"][0], frames, width, height, TEST_RATE_HZ).images
    from ...datasets.sequence import open_sequence

    found: list[U8] = []
    with open_sequence(source) as sequence:
        for frame in sequence.iter_frames():
            found.append(cv2.resize(frame.image, (width, height), interpolation=cv2.INTER_AREA))
            if len(found) == frames:
                return np.stack(found)
    raise DatasetError(
        f"{source} has {len(found)} images, but --frames asks for {frames}: give a longer one, or fewer frames"
    )


def report(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    width, height = result["image"]
    lines = [
        "# The model, dense and accelerated", "",
        f"come_ros {result['come_ros']}: {result['backbone']}, {result['weights']} ({result['parameters']} parameters), "
        f"{result['precision']} on {result['device']} "
        f"({result['machine']}, {result['threads']} threads), {result['attention']}; {width}x{height} px, {result['source']}; "
        f"{result['repeats']} passes each, in turn; large matrix products reach {result['matmul_gflops']:.0f} GFLOP/s; "
        f"load {result['load_before']:.1f} before, {result['load_after']:.1f} after.",
        "",
    ]  # fmt: skip
    if result["random_weights"]:
        lines += ["Random weights: which patches are merged, and so any difference to dense, means nothing.", ""]
    lines += [
        "| frames | accelerator | kept tokens | keys read | trunk, ms (p90) | / dense | with heads, ms (p90) | / dense | memory, MB | "
        "trunk, GFLOP | of matmul | depth AbsRel to dense | rotation, deg |",
        "|---" * 13 + "|",
    ]
    parts = [
        "",
        "Median ms by part:",
        "",
        "| frames | accelerator | " + " | ".join(COLUMNS) + " |",
        "|---" * (2 + len(COLUMNS)) + "|",
    ]
    for row in result["rows"]:
        head = f"| {row['frames']} | {row['accelerator']} | "
        if row["error"]:
            lines.append(head + row["error"] + " |" * 11)
            continue
        difference = row["difference"] or {}
        cells = [
            f"{row['kept_ratio']:.0%}",
            f"{row['read_ratio']:.0%}",
            *_times(row, "trunk"),
            *_times(row, "total"),
            f"{row['memory']['added_mb']:.0f}" if row.get("memory") else "",
            f"{row['gflop_trunk']:.3g}" if "gflop_trunk" in row else "",
            f"{row['share_of_matmul']:.0%}" if "share_of_matmul" in row else "",
            f"{difference['depth_abs_rel']:.4f}" if difference else "",
            f"{difference['rot_deg']:.2f}" if difference else "",
        ]
        lines.append(head + " | ".join(cells) + " |")
        ms = row["parts_ms"]
        parts.append(head + " | ".join(f"{ms[part]:.2f}" if part in ms else "" for part in COLUMNS) + " |")
    lines += parts
    for name, reason in result["left_out"].items():
        lines += ["", f"{name} is left out: {reason}."]
    return "\n".join(lines + _own_table(result) + _scaling_table(result))


def _own_table(result: dict[str, Any]) -> list[str]:
    """What each accelerator adds, as a share of its own pass, down; window lengths across."""
    rows = {(row["accelerator"], row["frames"]): row for row in result["rows"] if not row["error"]}
    names = list(dict.fromkeys(name for name, _ in rows if name != DENSE))
    if not names:
        return []
    counts = sorted({frames for _, frames in rows})
    lines = ["", f"Own steps ({', '.join(OWN)}), share of its own pass (of the dense pass), both with heads:", ""]
    lines += ["| accelerator | " + " | ".join(f"{n} frames" for n in counts) + " |", "|---" * (1 + len(counts)) + "|"]
    for name in names:
        cells = []
        for n in counts:
            own = rows.get((name, n), {}).get("own")
            of_dense = "" if not own or own["of_dense"] is None else f" ({own['of_dense']:.1%})"
            cells.append(f"{own['of_pass']:.1%}{of_dense}" if own else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _scaling_table(result: dict[str, Any]) -> list[str]:
    """Trunk ms and peak memory, down by accelerator, across by window length; and the exponents."""
    rows = {(row["accelerator"], row["frames"]): row for row in result["rows"] if not row["error"]}
    counts = sorted({frames for _, frames in rows})
    if len(counts) < 3:
        return []
    lines = ["", "Trunk, ms / MB that a pass adds (kept tokens), by frames; exponents, fitted in logarithms: over all lengths, and "
             f"over the longest {LONG}:", "",
             "| accelerator | " + " | ".join(str(n) for n in counts) + f" | exponent | {counts[-LONG:][0]} to {counts[-1]} | with heads |",
             "|---" * (4 + len(counts)) + "|"]  # fmt: skip
    for name, fit in result["scaling"].items():
        cells = []
        for n in counts:
            row = rows.get((name, n))
            memory = f" / {row['memory']['added_mb']:.0f}" if row and row.get("memory") else ""
            cells.append(f"{row['trunk_ms']['median']:.0f}{memory} ({row['kept_ratio']:.0%})" if row else "")
        fits = ["" if fit[k] is None else f"{fit[k]:.2f}" for k in ("trunk", "trunk_long", "total_long")]
        lines.append(f"| {_label(name)} | " + " | ".join(cells + fits) + " |")
    return lines


def _times(row: dict[str, Any], name: str) -> tuple[str, str]:
    ms, ratio = row[f"{name}_ms"], row[f"{name}_ratio"]
    return f"{ms['median']:.1f} ({ms['p90']:.1f})", "" if ratio is None else f"{ratio:.2f}"


def _label(accelerator: str) -> str:
    return "dense" if accelerator == DENSE else accelerator


def draw(path: Path, result: dict[str, Any]) -> None:
    """Latency of the trunk and of the whole against frames, and what the longest window's is made of. Raises OutputError."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, ScalarFormatter

    rows = [row for row in result["rows"] if not row["error"]]
    names = list(dict.fromkeys(row["accelerator"] for row in rows))
    many = len(names) > 4  # then the trunk only, or nobody can read it
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.8 + 0.2 * len(names)), layout="constrained")
    below = {"fontsize": 8, "loc": "upper center", "bbox_to_anchor": (0.5, -0.13)}
    for i, name in enumerate(names):
        ours = [row for row in rows if row["accelerator"] == name]
        frames = [row["frames"] for row in ours]
        power = result["scaling"].get(name, {}).get("trunk_long")
        for kind, style in (("trunk", "-"), ("total", ":"))[: 1 if many else 2]:
            median, p90 = (np.array([row[f"{kind}_ms"][k] for row in ours]) for k in ("median", "p90"))
            label = f"{_label(name)}, {'trunk' if kind == 'trunk' else 'with heads'}"
            if many:
                label = _label(name) + ("" if power is None else f" ~ frames^{power:.2f}")
            left.errorbar(
                frames, median, [0 * p90, p90 - median], fmt=f"{'os^v'[i // 10 % 4]}{style}", color="k" if name == DENSE else f"C{i}",
                label=label, capsize=3, ms=5,
            )  # fmt: skip
    left.set(xscale="log", yscale="log", xlabel="frames of a window", ylabel="ms, median; bar to p90",
             title=f"trunk; exponent over the longest {LONG}" if many else "")  # fmt: skip
    counts = sorted({row["frames"] for row in rows})
    left.set_xticks(counts, [str(n) for n in counts])
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter(ScalarFormatter())
    left.minorticks_off()
    left.grid(alpha=0.3, which="both")
    left.legend(**below, ncols=2)

    longest = [row for row in rows if row["frames"] == max(counts, default=0)]
    labels = [_label(row["accelerator"]).replace(":", "\n").replace(",", "\n") for row in longest]
    begin = np.zeros(len(longest))
    for i, part in enumerate(COLUMNS):
        ms = np.array([row["parts_ms"].get(part, 0.0) for row in longest])
        right.barh(labels, ms, left=begin, label=part, color=plt.get_cmap("tab10")(i))
        begin += ms
    right.invert_yaxis()
    right.set(xlabel="ms, median of each part", title=f"{max(counts, default=0)} frames")
    right.legend(**below, ncols=3)
    width, height = result["image"]
    figure.suptitle(
        f"{result['backbone']}, {result['weights']}, {width}x{height} px, {result['precision']}, {result['device']}"
    )
    with whole_file(path) as stream:
        figure.savefig(stream, dpi=90, format="png")
    plt.close(figure)
