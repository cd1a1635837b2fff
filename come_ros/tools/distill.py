"""Teach a small predictor to foresee, from an early encoder block, how sure the whole model will be of each patch (for Co-Me).

No labels: the frozen model is the teacher, so your own recordings will do, in minutes. Loss: logistic ranking of pairs of patches
("Co-Me", 2025, eq. for L), or z-scored squared error to compare with.

examples:
  come_ros distill -o out/distill                                  on procedural rooms, for the bundled model
  come_ros distill -o out/site --source my_bag --source photos/    adapt it to a place
  come_ros distill -o out/distill --resume                         go on after an interruption
then: accelerator.name: come, accelerator.predictor: out/distill/predictor.safetensors
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import CheckpointError, DatasetError
from ..training.loop import denormals_flushed
from .arguments import add_common_arguments

LEARNING_RATE, LAST_RATE, WEIGHT_DECAY = 1e-3, 1e-6, 0.01  # as in the original study
PAIRS = 32768
LONGEST = 8  # frames in a training window
VALIDATION_WINDOWS = 24
EVERY = 100  # steps between two scores
GROUP, RATIO = (3, 3), 0.5  # of the mask whose overlap with the teacher's is reported


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common_arguments(parser, "predictor")
    parser.add_argument(
        "--steps",
        type=int,
        default=2000,
        help="training steps in all (default %(default)s); --resume may go on to more",
    )
    parser.add_argument("--batch", type=int, default=32, help="frames in a step (default %(default)s)")
    parser.add_argument("--loss", choices=["ranking", "mse"], default="ranking", help="default %(default)s")
    parser.add_argument("--scope", choices=["window", "frame", "pooled"], default="window", help="who attends to whom")
    parser.add_argument("--dim", type=int, default=32, help="width of the predictor (default %(default)s)")
    parser.add_argument("--block", type=int, default=-1, help="encoder block to read, from 0 (default: 5/8 of the way)")


def run(args: argparse.Namespace) -> int:
    os.makedirs(args.output, exist_ok=True)
    result = distill(args)
    print(json.dumps(result, indent=2))
    return 0


class RoomWindows:
    """Windows of rendered rooms, as `come_ros train` draws them."""

    def __init__(self, seed: int, side: int) -> None:
        from ..training.room_windows import WindowStream

        self.side = side
        self._stream = WindowStream(seed + 77, side)
        self._debt = 0.0
        for _ in range(24):
            self._stream.render()

    def batch(self, windows: int, frames: int) -> np.ndarray:
        """(windows, frames, 3, H, W) uint8."""
        self._debt += windows * frames / 4
        while self._debt > 12:
            self._stream.render()
            self._debt -= 12
        size = self._stream.draw_size()
        return np.stack([self._stream.window(frames, 0.6, size).images for _ in range(windows)])

    def validation(self) -> list[np.ndarray]:
        from ..datasets.rooms.rooms import render_sequence
        from ..datasets.rooms.splits import SPLIT_SEEDS, TEST_RATE_HZ

        seeds = SPLIT_SEEDS["validation"][:VALIDATION_WINDOWS]
        size = {"width": self.side, "height": self.side * 3 // 4}
        made = (render_sequence(s, frames=4, rate_hz=TEST_RATE_HZ, **size) for s in seeds)
        return [s.images.transpose(0, 3, 1, 2) for s in made]


class RecordedWindows:
    """Windows of neighbouring frames of recordings; the last tenth of each is kept for validation."""

    def __init__(self, sources: list[str], side: int, patch: int, seed: int) -> None:
        """Raises DatasetError if a recording cannot be read or is too short."""
        from ..camera.preprocess import plan_resize, preprocess
        from ..datasets.sequence import open_sequence

        self.rng = np.random.default_rng(seed)
        self.train, self.held = [], []
        for source in sources:
            with open_sequence(source) as sequence:
                images = []
                for frame in sequence.iter_frames():
                    height, width = frame.image.shape[:2]
                    images.append(preprocess(frame.image, plan_resize(width, height, side, patch)).transpose(2, 0, 1))
            if len(images) < 10 or len({i.shape for i in images}) > 1:
                raise DatasetError(f"{source} has {len(images)} images of {len({i.shape for i in images})} sizes: "
                                   f"give 10 or more of one size")  # fmt: skip
            cut = len(images) - max(2, len(images) // 10)
            self.train.append(np.stack(images[:cut]))
            self.held.append(np.stack(images[cut:]))
        self._share = np.array([len(i) for i in self.train]) / sum(len(i) for i in self.train)

    def batch(self, windows: int, frames: int) -> np.ndarray:
        source = self.train[self.rng.choice(len(self.train), p=self._share)]  # one image size a batch
        frames = min(frames, len(source))
        out = []
        for _ in range(windows):
            span = int(self.rng.integers(frames, min(len(source), 4 * frames) + 1))
            start = int(self.rng.integers(len(source) - span + 1))
            picked = start + self.rng.permutation(span)[:frames]  # in any order: any frame may come first
            out.append(source[picked])
        return np.stack(out)

    def validation(self) -> list[np.ndarray]:
        windows = [h[i : i + 4] for h in self.held for i in range(0, max(1, len(h) - 3), 4)]
        return windows[:VALIDATION_WINDOWS]


def teach(model: Any, images: Any, blocks: Sequence[int]) -> tuple[dict[int, Any], Any]:
    """Tokens after each of these encoder blocks, block -> (B, S, h, w, C), and the model's own depth confidence as mean over each patch
    (B, S, h, w).

    images: (B, S, 3, H, W) uint8 tensor.
    """
    import torch
    import torch.nn.functional as F

    from ..accelerators import Accelerator, Layer, NoAccelerator, Tokens
    from ..backbones.model import run_block

    class Watch(Accelerator):  # the plan is the features themselves
        def plan_block(self, encoder_depth: int) -> int:
            return blocks[0]

        def plan(self, features: Tokens) -> Tokens:
            return features

    images = images.float() / 255
    with torch.inference_mode():
        out, trunk = model(images, Watch(), ("depth",))
        confidence = F.avg_pool2d(out["depth_conf"], model.patch)
        seen: dict[int, Tokens] = {blocks[0]: trunk.plan}
        if len(blocks) > 1:  # to compare blocks: the encoder once more
            tokens = model.encoder_input(images)
            for i, block in enumerate(model.encoder_blocks()[: max(blocks) + 1]):
                tokens, _ = run_block(block, tokens, None, NoAccelerator(), None, Layer("encoder", i))
                if i in blocks:
                    seen[i] = tokens
    return {i: t.x[:, :, t.special :].unflatten(2, t.grid).clone() for i, t in seen.items()}, confidence.clone()


def ranking_loss(predicted: Any, wanted: Any, pairs: int = PAIRS) -> Any:
    """mean log(1 + exp(-(c'_a - c'_b) sign(c_a - c_b))) over random pairs of patches of a window. (B, n) each."""
    import torch
    import torch.nn.functional as F

    n = predicted.shape[1]
    a, b = torch.randint(n, (2, min(pairs, n * 8)), device=predicted.device)
    return F.softplus(-(predicted[:, a] - predicted[:, b]) * (wanted[:, a] - wanted[:, b]).sign()).mean()


def mse_loss(predicted: Any, wanted: Any) -> Any:
    """Squared error after both are brought to mean 0 and deviation 1 in each window. (B, n) each."""

    def z(x: Any) -> Any:
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-6)

    return (z(predicted) - z(wanted)).square().mean()


def agreement(student: Student, taught: list[tuple[dict[int, Any], Any]]) -> dict[str, float]:
    """Mean over windows of Spearman's rank correlation with the teacher, and of the overlap (IoU) of the merge masks of both."""
    import torch
    from scipy.stats import spearmanr

    from ..accelerators.come import make_plan

    rank, overlap = [], []
    with torch.inference_mode():
        for tokens, wanted in taught:
            got = student.predictor(tokens[student.block])
            rank.append(float(spearmanr(got.flatten().cpu(), wanted.flatten().cpu()).statistic))
            grid = wanted.shape[-2:]
            k = int(RATIO * (grid[0] // GROUP[0]) * (grid[1] // GROUP[1]))
            if k:
                a, b = (make_plan(c, GROUP, k).merged for c in (got, wanted))
                overlap.append(float((a & b).sum() / (a | b).sum()))
    return {"spearman": float(np.nanmean(rank)), "mask_iou": float(np.mean(overlap)) if overlap else float("nan")}


def rate_at(step: int, steps: int) -> float:
    """Cosine from LEARNING_RATE to LAST_RATE. Known from the step alone, so that a run can be prolonged."""
    return LAST_RATE + (LEARNING_RATE - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / steps))


class Student:
    """A predictor that learns: loss "ranking" or "mse", from the tokens after encoder block `block`."""

    def __init__(self, model: Any, block: int, loss: str, scope: str, dim: int, seed: int) -> None:
        import torch

        from ..accelerators.confidence import ConfidencePredictor

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.predictor = ConfidencePredictor(model.encoder_width, dim, scope=scope)
        self.predictor.to(next(model.parameters()).device)
        self.block, self.loss, self.scope, self.seed = block, loss, scope, seed
        self.optimiser = torch.optim.AdamW(self.predictor.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def learn(self, tokens: dict[int, Any], wanted: Any, rate: float) -> float:
        """One step; the loss before it."""
        import torch

        features, wanted = tokens[self.block], wanted.flatten(1)
        if self.loss == "ranking":
            # before the exponential, whose order is the same: on exp(x) + 1 one of seven students ended as a constant
            loss = ranking_loss(self.predictor.logits(features).flatten(1), wanted)
        else:
            loss = mse_loss(self.predictor(features).flatten(1), wanted)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.predictor.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        return float(loss.detach())


def draw_batch(data: Any, rng: np.random.Generator, batch: int) -> np.ndarray:
    """Windows (B, S, 3, H, W) uint8 of one random length, `batch` frames in all."""
    frames = int(rng.integers(1, LONGEST + 1))
    return data.batch(max(1, batch // frames), frames)


@denormals_flushed()
def distill(args: argparse.Namespace) -> dict[str, Any]:
    """Trains, writes predictor.safetensors, curve.png and log.json; the last scores."""
    import torch
    from tqdm import tqdm

    from ..accelerators.confidence import default_block, save_predictor
    from ..backbones.checkpoint import bundled_weights, load_model
    from ..backbones.device import choose_device

    os.makedirs(args.output, exist_ok=True)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    device = choose_device(args.device)
    weights = args.weights or bundled_weights()
    model = load_model("", weights).to(device).eval().requires_grad_(False)
    block = args.block if args.block >= 0 else default_block(len(model.encoder_blocks()))
    side = args.side or model.native_side
    student = Student(model, block, args.loss, args.scope, args.dim, args.seed)
    step, log = 0, []
    path = os.path.join(args.output, "state.pt")
    settings = {"weights": os.path.basename(weights), "block": block, "scope": args.scope, "dim": args.dim,
                "loss": args.loss, "steps": args.steps}  # fmt: skip
    if args.resume:
        step, log = resume(path, student, settings)
        rng = np.random.default_rng((args.seed, step))
    # after a break the images are other ones, not the first ones again
    data = (
        RecordedWindows(args.source, side, model.patch, args.seed + step)
        if args.source
        else RoomWindows(args.seed + step, side)
    )
    taught = [teach(model, torch.from_numpy(w)[None].to(device), [block]) for w in data.validation()]
    mean = 0.0
    if not log:
        log.append({"step": 0, "loss": None, **agreement(student, taught)})
    with tqdm(total=args.steps, initial=step, desc="distilling", unit="step", disable=None) as bar:
        while step < args.steps:
            images = torch.from_numpy(draw_batch(data, rng, args.batch)).to(device)
            now = student.learn(*teach(model, images, [block]), rate_at(step, args.steps))
            step += 1
            mean = 0.95 * mean + 0.05 * now if mean else now
            bar.update()
            if step % EVERY == 0 or step == args.steps:
                log.append({"step": step, "loss": mean, **agreement(student, taught)})
                bar.set_postfix(
                    loss=f"{mean:.3f}", spearman=f"{log[-1]['spearman']:.3f}", iou=f"{log[-1]['mask_iou']:.3f}"
                )
                state = {
                    "predictor": student.predictor.state_dict(),
                    "optimiser": student.optimiser.state_dict(),
                    "step": step,
                    "log": log,
                    "settings": settings,
                }
                torch.save(state, path + ".part")
                os.replace(path + ".part", path)
                draw_curve(log, args.loss, os.path.join(args.output, "curve.png"))
    about = {"licence": "Apache-2.0", "made_by": "come_ros distill", "steps": str(step), "loss": args.loss,
             "seed": str(args.seed), "weights": os.path.basename(weights)}  # fmt: skip
    save_predictor(os.path.join(args.output, "predictor.safetensors"), student.predictor.cpu(), block, about)
    with open(os.path.join(args.output, "log.json"), "w", encoding="utf-8") as fh:
        json.dump(log, fh, indent=1)
    return {"predictor": os.path.join(args.output, "predictor.safetensors"), "block": block, **log[-1]}


def resume(path: str, student: Student, settings: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """Puts the state in the file `path` into the student; (steps done, log). settings: those of the run to come.

    With other steps than before, the rest follows the curve of the new ones, which is said. Raises CheckpointError if there is no such
    file, if it is of another student, or if the steps asked for are done.
    """
    import torch

    if not os.path.isfile(path):
        raise CheckpointError(f"nothing to resume: no {path}; name the folder of an earlier run, or leave --resume out")
    try:
        state = torch.load(path, weights_only=True)
        before, step, log = state.get("settings", {}), int(state["step"]), state["log"]
    except Exception as error:  # torch raises many kinds for damaged files
        raise CheckpointError(f"cannot resume from {path}, it is damaged: leave --resume out to start anew") from error
    other = [f"--{k} {before[k]}, not {v}" for k, v in settings.items() if k != "steps" and before.get(k, v) != v]
    if other:
        raise CheckpointError(
            f"{path} is of a run with {', '.join(other)}: give the same, or leave --resume out to start anew"
        )
    if step >= settings["steps"]:
        raise CheckpointError(
            f"{path} has {step} steps already, and --steps asks for {settings['steps']}: nothing is left to do; raise --steps "
            f"to go on"
        )
    if before.get("steps", settings["steps"]) != settings["steps"]:
        print(
            f"going on from step {step} with --steps {settings['steps']} instead of {before['steps']}: from here the learning rate "
            f"follows the curve of the new length",
            file=sys.stderr,
        )
    student.predictor.load_state_dict(state["predictor"])
    student.optimiser.load_state_dict(state["optimiser"])
    return step, log


def draw_curve(log: list[dict[str, Any]], loss: str, path: str) -> None:
    """Loss, rank correlation and mask overlap against the step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for axis, (name, title) in zip(axes, _curves(loss), strict=True):
        axis.plot([e["step"] for e in log if e[name] is not None], [e[name] for e in log if e[name] is not None])
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _curves(loss: str) -> Iterator[tuple[str, str]]:
    yield "loss", f"{loss} loss"
    yield "spearman", "rank correlation with the teacher"
    yield "mask_iou", f"overlap of the merge masks, {GROUP[0]}x{GROUP[1]}, {RATIO:.0%}"
