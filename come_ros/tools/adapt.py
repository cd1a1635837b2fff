"""Teaches a model your camera and your place from a recording, without labels, in minutes on a CPU.

The teacher is the pipeline itself: in the first part of each recording its tracks and bundle find poses, focal length and points that one
pass of the network does not know, and a short fine-tuning teaches them to the network. The last part (--held) is never learned from: it
scores the new weights next to those before, against the truth where the recording has any, and else against the bundle.
The output folder then holds
  weights.safetensors  the adapted model, for the parameter `weights`
  come_weights.safetensors   Co-Me's predictor for it, which is found next to the weights
  card.md              what it was made from, and its scores before and after
  scores.json          all scores
  log.json             losses on the validation windows, which are the last fifth of the first part

examples:
  come_ros adapt --source my_bag -o out/site
  come_ros adapt --source monday.mcap --source tuesday.mcap -o out/site --minutes 40
  come_ros adapt --source my_bag -o out/site --resume                 continue after Ctrl-C or a crash
  come_ros adapt --source my_bag -o out/site --gt /vicon/odometry     true poses, for the scores only
  come_ros adapt --source my_bag -o out/site --steps 300 --set threads=1    the same result on each run
then: weights: out/site/weights.safetensors
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__, progress
from ..companions import PREDICTOR, made_for
from ..config import Config
from ..datasets.part import Part
from ..errors import CheckpointError, ConfigError, DatasetError, Stopped
from ..files import fingerprint, shown, write_text
from ..fleet.record import finished
from ..interrupts import Interrupts
from ..progress import doing
from ..training.loop import load_state, load_state_of, resumable, save_state, write_log
from .arguments import add_config_arguments, add_resume_arguments, configuration, training_folder
from .bag import for_photographs
from .checkout import commit
from .eval.sources import Cut, Source
from .eval.whole_recordings import MODES, baselines, followed, scored
from .report.adapted import card, report, verdict
from .report.next_steps import of_adapted, tell
from .result import print_result

if TYPE_CHECKING:
    from ..accelerators import Accelerator
    from ..backbones.torch_backbone import TorchBackbone
    from ..evaluation.window import WindowTruth
    from ..training.adaptation import Adaptation
    from ..training.lessons import Keyframe, Lessons

WEIGHTS, CARD, SCORES = "weights.safetensors", "card.md", "scores.json"
STATE, LESSONS = "state.pt", "lessons.pt"  # until it is complete
SAVE_S = 60.0  # between two checkpoints
PREDICTOR_BATCHES, PREDICTOR_FRAMES, PREDICTOR_STEPS = 24, 8, 200  # that Co-Me's predictor learns from
MINUTES, STEPS = 20.0, 300
VALIDATION = 0.2  # last share of the keyframes to learn from, which chooses the best step
LEAST_KEYFRAMES = 8  # that the bundle vouches for
MOST_WINDOWS = 24  # that are scored, of a recording
PASSES = 5  # through the pipeline that scoring takes, each of the held-out part


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source", action="append", required=True, metavar="PATH",
        help="recording of the camera and the place: whatever `come_ros bag` reads, or the output of `come_ros fleet`; may be repeated",
    )  # fmt: skip
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for weights, card, scores and log")
    parser.add_argument("--topic", default=None, help="image topic of a bag that holds several")
    add_config_arguments(parser)
    parser.add_argument(
        "--gt", metavar="TOPIC|FILE", default=None,
        help="true path of the camera, for the scores only: a topic of the bag or a TUM file (default: the recording's own)",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=float, default=MINUTES,
        help="time for everything; training ends where scoring must begin (default %(default)g)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=STEPS, help="most training steps (default %(default)s)")
    parser.add_argument(
        "--held", type=float, default=1 / 3, metavar="SHARE",
        help="last share of each recording's time that is kept for scoring, 0.1 to 0.9 (default 1/3)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    add_resume_arguments(parser)


def run(args: argparse.Namespace) -> int:
    _check(args)
    # dense and fp32, as it learns: scores before and after are then of the same arithmetic
    fixed = {"odometry.rate": "keyframe", "refine.mode": "bundle", "precision": "fp32", "accelerator.name": "none"}
    config = configuration(args).replace(**fixed)
    folder = training_folder(args, STATE)
    with Interrupts() as stopped:
        begun = time.monotonic(), time.process_time()
        with stopped.raising():
            before, split = _prepared(args, config)
            config = for_photographs(config, all(s.timed for s in split))
            backbone = _backbone(config)
            run = _begun(args, config, before, split, backbone, begun, stopped)
        adaptation, taught = run.adaptation, run.taught
        passes_s = (
            PASSES * taught.seconds * sum(len(s.held_stamps) for s in split) / max(1, sum(s.taught for s in split))
        )
        try:
            with stopped.raising():
                ended = _train(run, folder, 60 * args.minutes - 1.3 * passes_s, stopped)
        except Stopped as stop:
            run.save(folder)
            raise Stopped(stop.number, resumable(adaptation.step, args.output)) from None
        if not adaptation.learned:
            _tidy(folder)
            raise CheckpointError(
                f"none of {adaptation.step} steps agrees better with the bundle on the validation keyframes without losing in rotation, "
                f"direction or points: nothing is written; record more of the place, or allow more time with --minutes and --steps"
            )
        run.save(folder)
        path = _write(args, adaptation, before)
        try:
            with stopped.raising():
                after = _backbone(config.replace(weights=path))
                predictor = _refitted(args, config, after, taught, before, path)
                merging = _merging(config, before, path, after) if predictor else {}
                scores = {s.source.label: _scores(s, config, backbone, after, merging, stopped) for s in split}
        except Stopped as stop:
            raise Stopped(stop.number, f"{shown(path)} is complete, but not scored: --resume scores it") from None
        seconds, cpu_seconds = run.spent()
        result: dict[str, Any] = {
            "weights": path, "steps": adaptation.step, "best_step": adaptation.best_step, "ended": ended,
            "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1),
            "keyframes": taught.counts, "predictor": predictor, "scores": scores, "verdict": verdict(scores),
            "start": {"file": os.path.basename(before), "fingerprint": fingerprint(before)}, "come_ros": __version__, "commit": commit(),
            "options": {"source": args.source, "held": args.held, "seed": args.seed, "steps": args.steps, "minutes": args.minutes,
                        "threads": config.threads},
        }  # fmt: skip
        write_text(os.path.join(args.output, SCORES), json.dumps(_plain(result), indent=1) + "\n")
        write_text(os.path.join(args.output, CARD), card(result))
        _tidy(folder)
    print_result(args, result, report(result))
    tell(of_adapted(path, result["verdict"]))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises ConfigError."""
    for name, value, good, rule in (
        ("minutes", args.minutes, 0 < args.minutes < 1e5, "more than 0"),
        ("steps", args.steps, 1 <= args.steps <= 1_000_000, "1 or more"),
        ("held", args.held, 0.1 <= args.held <= 0.9, "0.1 to 0.9"),
    ):
        if not good:
            raise ConfigError(f"--{name} is {value:g}, but must be {rule}")


# before training


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One recording: the part to learn from and the part that is held out. taught, held_stamps: number of images in the first, stamps of
    the second. timed: whether its images have times; else they are photographs."""

    source: Source
    first: Part
    last: Part
    taught: int
    held_stamps: tuple[int, ...]
    timed: bool = True

    @property
    def held(self) -> Source:
        return dataclasses.replace(self.source, part=self.last)


def split_by_time(source: Source, held: float) -> Split:
    """The last share `held` of the recording's time apart. Raises DatasetError if there are too few images."""
    with source.open() as sequence:
        frames = progress.bar(sequence.iter_frames(), total=sequence.count, desc="reading stamps", unit="img")
        stamps = [frame.stamp_ns for frame in frames]
        timed = sequence.timed
    low, high = (stamps[0], max(stamps)) if stamps else (0, 0)
    at_s = (1 - held) * (high - low) * 1e-9
    late = tuple(t for t in stamps if (t - low) * 1e-9 >= at_s)
    if len(stamps) < 2 * LEAST_KEYFRAMES or at_s <= 0:
        raise DatasetError(
            f"{source.name} has {len(stamps)} images, but {2 * LEAST_KEYFRAMES} or more are needed: record longer"
        )
    return Split(source, Part(duration_s=at_s), Part(start_s=at_s), len(stamps) - len(late), late, timed)


@dataclasses.dataclass(frozen=True, eq=False)
class Taught:
    """What the bundle says of the first parts. seconds: that took. counts: of keyframes, by what became of them."""

    lessons: Lessons
    validation: list[tuple[Keyframe, ...]]
    seconds: float
    counts: dict[str, int]

    def save(self, path: Path) -> None:
        """Raises OutputError."""
        parts = {"lessons": self.lessons.runs, "validation": self.validation}
        runs = {name: [[k.state() for k in run] for run in found] for name, found in parts.items()}
        save_state(
            str(path), {**runs, "left_out": self.lessons.left_out, "seconds": self.seconds, "counts": self.counts}
        )

    @staticmethod
    def load(path: Path) -> Taught:
        """Raises CheckpointError."""
        from ..training.lessons import Keyframe, Lessons

        state = load_state(str(path))
        lessons, validation = (
            [tuple(map(Keyframe.of_state, run)) for run in state[name]] for name in ("lessons", "validation")
        )
        return Taught(Lessons(tuple(lessons), state["left_out"]), validation, state["seconds"], state["counts"])


def _prepared(args: argparse.Namespace, config: Config) -> tuple[str, list[Split]]:
    """The weights before, and the recordings."""
    from ..backbones.checkpoint import bundled_weights

    names = [each for word in args.source for each in finished(Path(word)) or [word]]
    sources = [Source(name, config, args.topic, args.gt) for name in dict.fromkeys(names)]
    labels = [s.label for s in sources]
    sources = [s if labels.count(s.label) == 1 else dataclasses.replace(s, label=s.name) for s in sources]
    before = config.weights or bundled_weights(config.backbone)
    return before, [split_by_time(source, args.held) for source in sources]


def _backbone(config: Config) -> TorchBackbone:
    """Raises ConfigError for what cannot be adapted."""
    from ..backbones import load_backbone, reproducible
    from ..backbones.torch_backbone import TorchBackbone

    reproducible(config)
    with doing("loading the model"):
        backbone = load_backbone(config)
    if not isinstance(backbone, TorchBackbone) or backbone.causal:
        raise ConfigError(
            f"the backbone {config.backbone} cannot be adapted, only models that take whole windows, such as vggt: set backbone to one"
        )
    return backbone


def _taught(split: Sequence[Split], config: Config, backbone: TorchBackbone, stopped: Interrupts) -> Taught:
    """Runs the first parts through the pipeline. Raises DatasetError if the bundle vouches for too little of them."""
    from ..training.lessons import SCORED, Lessons

    begun = time.monotonic()
    lessons: list[Lessons] = []
    validation: list[tuple[Keyframe, ...]] = []
    counts = {"read": 0, "gap": 0, "left_out": 0}
    for s in split:
        found = _keyframes(
            dataclasses.replace(s.source, part=s.first), config, backbone, f"reconstructing {s.source.label}", stopped
        )
        # the gap: no window that is learned from shares a keyframe's surroundings with what is held out
        kept = found[: -config.window.size]
        cut = len(kept) - max(SCORED, round(VALIDATION * len(kept)))
        lessons.append(Lessons.of(kept[:cut]) if cut > 0 else Lessons(()))
        checked = Lessons.of(kept[max(0, cut) :])
        validation += checked.windows()
        counts["read"] += len(found)
        counts["gap"] += len(found) - len(kept)
        counts["left_out"] += lessons[-1].left_out + checked.left_out
    every = Lessons(tuple(run for each in lessons for run in each.runs))
    counts |= {"learned_from": len(every), "validation": SCORED * len(validation)}
    if len(every) < LEAST_KEYFRAMES or not validation:
        raise DatasetError(
            f"the bundle vouches for {len(every)} keyframes to learn from and {len(validation)} windows to validate with, of "
            f"{counts['read']}, but {LEAST_KEYFRAMES} and 1 are needed: record longer, slower, or with more texture, or lower --held"
        )
    return Taught(every, validation, time.monotonic() - begun, counts)


def _keyframes(
    source: Source, config: Config, backbone: TorchBackbone, what: str, stopped: Interrupts
) -> list[Keyframe]:
    from ..pipeline import ReconstructionPipeline
    from ..training.lessons import keyframes

    with source.open() as sequence:
        frames = progress.bar(sequence.iter_frames(), total=sequence.count, desc=what, unit="img")
        return keyframes(ReconstructionPipeline(config, backbone), frames, stopped)


# training


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """settings: what a resumed run must have as well. begun: monotonic and process time at which it would have begun in one piece."""

    taught: Taught
    adaptation: Adaptation
    settings: dict[str, Any]
    begun: tuple[float, float]

    def spent(self) -> tuple[float, float]:
        """Seconds, and seconds of CPU time, of all sessions."""
        return time.monotonic() - self.begun[0], time.process_time() - self.begun[1]

    def save(self, folder: Path) -> None:
        """Writes the state. Raises OutputError."""
        save_state(
            str(folder / STATE), {**self.adaptation.state(), "settings": self.settings, "spent": list(self.spent())}
        )


def _begun(
    args: argparse.Namespace, config: Config, before: str, split: Sequence[Split], backbone: TorchBackbone,
    begun: tuple[float, float], stopped: Interrupts,
) -> Run:  # fmt: skip
    """A new run, or with --resume that of the state. Raises CheckpointError or DatasetError."""
    from ..training.adaptation import Adaptation, Plan
    from ..training.rehearsal import Rehearsal

    folder = Path(args.output)
    usual = Config().to_flat()
    parameters = {name: x for name, x in config.to_flat().items() if x != usual[name] and name != "threads"}
    settings = {"source": [s.source.name for s in split], "held": args.held, "steps": args.steps, "seed": args.seed,
                "weights": fingerprint(before), "set": json.dumps(_plain(parameters))}  # fmt: skip
    state: dict[str, Any] = {}
    if args.resume:
        if (folder / SCORES).exists() and not (folder / STATE).exists():
            raise CheckpointError(
                f"the run in {shown(folder)} is complete: nothing is left to do; --overwrite replaces it, -o chooses another folder"
            )
        state = load_state_of(str(folder / STATE), settings)
        taught = Taught.load(folder / LESSONS)
        begun = begun[0] - state["spent"][0], begun[1] - state["spent"][1]
    else:
        taught = _taught(split, config, backbone, stopped)
    plan = Plan(steps=args.steps)
    with doing("rendering rooms to rehearse"):
        rehearsal = Rehearsal.of(backbone.model, plan.batch, args.seed)
    adaptation = Adaptation(
        copy.deepcopy(backbone.model), taught.lessons, taught.validation, rehearsal, plan, args.seed
    )
    run = Run(taught, adaptation, settings, begun)
    if state:
        adaptation.restore(state)
    else:
        with stopped.held():
            taught.save(folder / LESSONS)
            run.save(folder)
    return run


def _train(run: Run, folder: Path, seconds: float, stopped: Interrupts) -> str:
    """All steps, until so many seconds are spent. Returns why it ended."""
    from ..training.loop import denormals_flushed

    adaptation, plan, saved = run.adaptation, run.adaptation.plan, time.monotonic()
    with (
        denormals_flushed(),
        progress.bar(total=plan.steps, initial=adaptation.step, desc="adapting", unit="step") as bar,
    ):
        while not adaptation.done:
            late = run.spent()[0] > seconds
            if adaptation.due or (late and not adaptation.validated):
                entry = adaptation.validate()
                bar.set_postfix(validation=f"{entry['validation']:.3f}")
            elif late:
                return "no time was left"
            else:
                adaptation.gradients()
                with stopped.held():
                    adaptation.descend()
                bar.update()
            if time.monotonic() - saved > SAVE_S:
                with stopped.held():
                    run.save(folder)
                saved = time.monotonic()
    return "all steps are done" if adaptation.step >= plan.steps else "the validation got no better"


def _write(args: argparse.Namespace, adaptation: Adaptation, before: str) -> str:
    """Writes weights and log. Returns the path of the weights."""
    from ..backbones.checkpoint import save_checkpoint

    path = os.path.join(args.output, WEIGHTS)
    assert adaptation.best is not None
    for name in (CARD, SCORES):  # of an earlier run, with --overwrite
        Path(args.output, name).unlink(missing_ok=True)
    about = {
        "licence": "as of the weights before; Apache-2.0 for those that ship with come_ros", "made_by": "come_ros adapt",
        "start": os.path.basename(before), "start_fingerprint": fingerprint(before), "step": str(adaptation.best_step),
        "seed": str(args.seed), "come_ros": __version__, "commit": commit(),
        "source": ", ".join(os.path.basename(os.path.normpath(s)) for s in args.source),
    }  # fmt: skip
    save_checkpoint(path, adaptation.best, extra=about)
    write_log(args.output, adaptation.log)
    return path


def _refitted(
    args: argparse.Namespace, config: Config, after: TorchBackbone, taught: Taught, before: str, path: str
) -> dict[str, float] | None:
    """Trains Co-Me's predictor of the weights before further, for the new ones, and writes it next to them. path: the new ones. Returns
    the rank correlation of both with the new model's confidence on the validation windows; None if the weights before have no
    predictor."""
    from ..accelerators.confidence import load_predictor, save_predictor
    from ..training.lessons import plain_batch
    from ..training.predictor import agreement, refitted, teach

    try:
        old, block = load_predictor(PREDICTOR.of(before, config.accelerator.predictor), after.model.shape, before)
    except CheckpointError:
        return None
    model, device = after.model, next(after.model.parameters()).device
    rng = np.random.default_rng(args.seed)
    images = [taught.lessons.batch(rng, PREDICTOR_FRAMES)["images"] for _ in range(PREDICTOR_BATCHES)]
    with doing("adapting Co-Me's predictor"):
        new = refitted(model, old, block, images, PREDICTOR_STEPS, args.seed)
        held = [teach(model, plain_batch(w)["images"].to(device), [block]) for w in taught.validation]
        found = {
            name: agreement(p.to(device), block, held)["spearman"] for name, p in (("before", old), ("after", new))
        }
    about = {"licence": "as of the weights before; Apache-2.0 for those that ship with come_ros", "made_by": "come_ros adapt",
             **made_for(path), "seed": str(args.seed), "come_ros": __version__, "commit": commit()}  # fmt: skip
    better = new if found["after"] >= found["before"] else old
    save_predictor(PREDICTOR.next_to(path), better.cpu(), block, about)
    return found


def _tidy(folder: Path) -> None:
    """Removes what only --resume needs."""
    for name in (STATE, LESSONS):
        (folder / name).unlink(missing_ok=True)


# scores


def _scores(
    split: Split, config: Config, before: TorchBackbone, after: TorchBackbone, merging: Mapping[str, Accelerator],
    stopped: Interrupts,
) -> dict[str, Any]:  # fmt: skip
    """Of the held-out part: "windows" against the truth and "agreement" with the bundle of the weights before, each before, after and
    trivial; "merged", the windows that decide with the new weights and each of `merging`; "whole", mode -> before and after, see
    whole_recordings.scored, and "baselines". None where nothing is known."""
    from ..training.judge import summary, trivial_scores, window_scores
    from ..training.lessons import Lessons, truth_of

    label, held = split.source.label, split.held
    backbones = {"before": before, "after": after}

    def compared(windows: Sequence[WindowTruth]) -> dict[str, Any] | None:
        if not windows:
            return None
        rows = {name: summary([window_scores(b.model, w) for w in windows]) for name, b in backbones.items()}
        return {**rows, "trivial": summary([trivial_scores(w) for w in windows])}

    found = Lessons.of(_keyframes(held, config, before, f"scoring {label}: bundle", stopped))
    by_bundle = found.windows()
    some: Any = np.unique(np.linspace(0, max(0, len(by_bundle) - 1), MOST_WINDOWS).astype(int)) if by_bundle else []
    agreed = [truth_of(by_bundle[i], label, int(i)) for i in some]
    try:
        true = list(held.windows(Cut(most=MOST_WINDOWS), before))
    except DatasetError:  # no truth
        true = []
    out: dict[str, Any] = {"agreement": compared(agreed), "windows": compared(true), "merged": None}
    if merging and (true or agreed):
        out["merged"] = {
            name: summary([window_scores(after.model, w, accelerator) for w in true or agreed])
            for name, accelerator in merging.items()
        }
    with held.open() as sequence:
        truth = held.truth(sequence)
    whole: dict[str, Any] = {}
    for mode in MODES if truth or out["windows"] else ():
        for name, backbone in backbones.items():
            poses, depth, counts = followed(
                held, config.replace(**{"refine.mode": mode}), backbone, f"{label}, {name}, {mode}", stopped
            )
            real = _matched(poses, truth)
            whole.setdefault(mode, {})[name] = scored(poses, real, depth) | counts
            out["baselines"] = baselines(real, depth)
    return {**out, "whole": whole or None}


def _merging(config: Config, before: str, after: str, backbone: TorchBackbone) -> dict[str, Accelerator]:
    """Co-Me for the new weights with the predictor before and after, and random groups, which are trivial."""
    from ..accelerators import make_accelerator

    old = PREDICTOR.of(before, config.accelerator.predictor)
    half = config.replace(**{"accelerator.ratio": 0.5})
    # the predictor before is of the weights before, and here runs with the new ones on purpose
    wanted = {
        "before": ("come", old, before), "after": ("come", PREDICTOR.of(after), after), "trivial": ("random", "", after),
    }  # fmt: skip
    return {
        name: make_accelerator(
            half.replace(**{"accelerator.name": kind, "accelerator.predictor": path}), backbone.model.shape, of
        ).to(next(backbone.model.parameters()).device)
        for name, (kind, path, of) in wanted.items()
    }


def _matched(poses: dict[int, Any], truth: dict[int, Any]) -> dict[int, Any]:
    from ..datasets.stamps import matched

    return matched(sorted(poses), truth)


def _plain(value: Any) -> Any:
    from .report.tables import for_json

    return for_json(value)
