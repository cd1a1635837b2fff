"""The verdict: one level, the reasons, and what to do next, from facts about a result. Values in, value out.

The thresholds were chosen on the tuning half of test/benchmark/robustness/verdict.py, which states their error rates on the other half,
with results of `tiny`. The confidence of the network does not decide: that of `tiny` was at its floor in most pixels of good and of
worthless results alike, and `tiny2` is more confident about grey images that show nothing than about the photographs of fr1_rpy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

USABLE, DOUBTFUL, UNUSABLE = LEVELS = "usable", "doubtful", "unusable"

LEAST_KEYFRAMES = 4  # fewer show nothing
# Mean correlation of an image with what the result predicts from the one before, median over keyframes: 1 is perfect, 0 is chance
AGREES, DISAGREES = 0.65, 0.45
CHANCE = 0.3  # a single step that agrees less does not agree at all
LEAST_AGREED = 0.75  # share of the steps that agree better than by chance
LEAST_COMPARED = 0.5  # share of the steps with enough texture to compare
FIRM, HELD, HARDLY_HELD = 0.95, 0.88, 0.5  # share of the keyframes that tracked points hold
LOST = 0.2  # share of the images whose pose was only extrapolated
REFUSED = 0.2  # share of the windows that did not fit
LEFT_OUT = 0.2  # share of the images that could not be used
FAR = 0.1  # spread of the path in depths of the scene: with less, motion does not determine depth
DRIFT = 0.05  # how far loops moved the path, as a share of the way
# With truth
AS_BAD, GOOD = 0.9, 0.5  # error of the path over that of the best trivial baseline
SHORT = 2.0  # factor between the scales of depth and path


@dataclass(frozen=True)
class Facts:
    """What a run knows about its result; NaN where unknown, which is no reason for anything.

    keyframes: number of published ones. agreement: median over the steps between them of evidence.Agreement.correlation; agreed: share
    of the steps that agree better than by chance; compared: share that could be compared. extent: spread of the path in median depths.
    held: share of the keyframes that the bundle refined. landmarks: in a window, median. confidence: the network's, median over keyframes
    of their medians; it decides nothing. lost: share of the images whose pose was extrapolated. refused: share of the windows. left_out:
    share of the images that could not be read, or were out of order. loops: number of loops closed. drift: how far loops moved the path,
    as a share of the way.
    """

    keyframes: int = 0
    agreement: float = math.nan
    agreed: float = math.nan
    compared: float = math.nan
    extent: float = math.nan
    held: float = math.nan
    landmarks: float = math.nan
    confidence: float = math.nan
    lost: float = math.nan
    refused: float = math.nan
    left_out: float = math.nan
    loops: int = 0
    drift: float = math.nan


@dataclass(frozen=True)
class Verdict:
    """level: one of LEVELS. reasons: in words, the most important one first. advice: what to do next, "" for nothing."""

    level: str
    reasons: tuple[str, ...]
    advice: str = ""

    @property
    def reason(self) -> str:
        return "; ".join(self.reasons)

    @property
    def line(self) -> str:
        """Everything in one line."""
        return f"{self.level}: {self.reason}" + (f". Next: {self.advice}" if self.advice else "")


Finding = tuple[str, str, str]
"""(level, reason, advice)"""


@dataclass(frozen=True)
class Errors:
    """Errors against the truth, and those of the best trivial baseline with its name; NaN where unknown. path: ATE, Sim(3), m. depth:
    AbsRel, one scale for all frames. short: how many times too short the path is for the depth. turn: median error of the rotation from
    image to image, over that of no rotation."""

    path: float = math.nan
    path_baseline: tuple[str, float] = ("", math.nan)
    depth: float = math.nan
    depth_baseline: tuple[str, float] = ("", math.nan)
    short: float = math.nan
    turn: float = math.nan


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict of several: the worst level, the reasons for it, and the advice of the first of them. There must be one."""
    found = list(verdicts)
    level = max((v.level for v in found), key=LEVELS.index)
    guilty = [v for v in found if v.level == level]
    return Verdict(level, tuple(r for v in guilty for r in v.reasons), next((v.advice for v in guilty if v.advice), ""))


def judge(facts: Facts) -> Verdict:
    """Without truth."""
    found = [f for rule in (_length, _agreement, _tracks, _stream, _motion) for f in rule(facts)]
    if not found:
        return Verdict(USABLE, tuple(_praise(facts)))
    return worst(Verdict(level, (reason,), advice) for level, reason, advice in found)


def against_truth(errors: Errors, extent: float = math.nan) -> Verdict | None:
    """What the truth says; None if there is none. extent: as in Facts."""
    found, good = [], []
    name, baseline = errors.path_baseline
    ratio = errors.path / baseline if baseline > 0 else math.nan
    if ratio >= AS_BAD:
        text = f"the path is no better than a trivial one (ATE {errors.path:.3g} m, {name} {baseline:.3g} m)"
        if errors.turn < GOOD:
            found.append(Verdict(DOUBTFUL, (f"{text}, but its rotations are right",), "use the rotation only"))
        else:
            level = DOUBTFUL if extent < FAR else UNUSABLE
            found.append(Verdict(level, (text,), "compare both paths in the picture"))
    elif ratio > GOOD:
        text = f"the path is hardly better than a trivial one (ATE {errors.path:.3g} m, {name} {baseline:.3g} m)"
        found.append(Verdict(DOUBTFUL, (text,)))
    elif math.isfinite(ratio):
        good.append(f"ATE {errors.path:.3g} m, {name} {baseline:.3g} m")
    name, baseline = errors.depth_baseline
    if errors.depth >= baseline:
        text = f"depth is no better than a {name} (AbsRel {errors.depth:.3g}, that {baseline:.3g})"
        found.append(Verdict(DOUBTFUL, (text,), "take larger weights"))
    elif math.isfinite(errors.depth):
        good.append(f"depth AbsRel {errors.depth:.3g}, {name} {baseline:.3g}")
    if errors.short > SHORT or errors.short < 1 / SHORT:
        how = f"{errors.short:.3g} times too short" if errors.short > 1 else f"{1 / errors.short:.3g} times too long"
        found.append(
            Verdict(DOUBTFUL, (f"the path is {how} for the depth",), "do not mix lengths of the path and of the cloud")
        )
    if found:
        return worst(found)
    return Verdict(USABLE, tuple(good)) if good else None


def _length(facts: Facts) -> Iterable[Finding]:
    if facts.keyframes < LEAST_KEYFRAMES:
        yield DOUBTFUL, f"{facts.keyframes} keyframes are too few to judge by", "give it more images"


def _agreement(facts: Facts) -> Iterable[Finding]:
    """Whether an image looks as the result predicts from the one before."""
    advice = "record images that overlap by more than half, in focus and in light, of a scene that stands still"
    still = f", and the camera hardly moves ({facts.extent:.2f} of the depth)" if facts.extent < FAR else ""
    bad = facts.agreement < DISAGREES or facts.agreed < LEAST_AGREED
    hardly = f"images hardly look as the result predicts (agreement {facts.agreement:.2f} of 1)"
    if facts.held >= FIRM and facts.agreement >= CHANCE and (bad or facts.agreement < AGREES):
        reason = f"points that were followed hold the path, but depth between them is off: {hardly}"
        yield DOUBTFUL, reason, "use the path; for a better cloud, record images closer together"
    elif facts.agreement < DISAGREES:
        yield (
            UNUSABLE,
            f"images do not look as the result predicts (agreement {facts.agreement:.2f}, chance is 0){still}",
            advice,
        )
    elif bad:
        yield UNUSABLE, f"{1 - facts.agreed:.0%} of the images do not look as the result predicts{still}", advice
    elif facts.agreement < AGREES and facts.held < HELD:  # neither of the two vouches for it
        yield (
            UNUSABLE,
            f"{hardly} and points that could be followed hold only {facts.held:.0%} of the keyframes",
            advice,
        )
    elif facts.agreement < AGREES:
        yield DOUBTFUL, hardly, advice
    if facts.compared < LEAST_COMPARED:
        level = DOUBTFUL if facts.held > HARDLY_HELD else UNUSABLE
        reason = f"{1 - facts.compared:.0%} of the images show too little to check the result by: dark, blank or out of focus"
        yield level, reason, "give it light and texture"


def _tracks(facts: Facts) -> Iterable[Finding]:
    """How much of it measured points hold, instead of the network alone."""
    advice = "move slower or record more images per second, so that points can be followed from image to image"
    if facts.held < HARDLY_HELD:
        yield UNUSABLE, f"points that could be followed hold only {facts.held:.0%} of the keyframes", advice
    elif facts.held < HELD:
        yield DOUBTFUL, f"points that could be followed hold only {facts.held:.0%} of the keyframes", advice
    if facts.lost > LOST:
        yield DOUBTFUL, f"the pose of {facts.lost:.0%} of the images is only carried on from the one before", advice


def _stream(facts: Facts) -> Iterable[Finding]:
    if facts.refused > REFUSED:
        yield (
            DOUBTFUL,
            f"{facts.refused:.0%} of the windows did not fit the last one and were refused",
            "move slower, or raise the image rate",
        )
    if facts.left_out > LEFT_OUT:
        yield (
            DOUBTFUL,
            f"{facts.left_out:.0%} of the images could not be used",
            "see the images that were not used, above",
        )
    if facts.drift > DRIFT:
        yield (
            DOUBTFUL,
            f"loops moved the path by {facts.drift:.0%} of the way",
            "use path and map in map_frame, not odometry",
        )


def _motion(facts: Facts) -> Iterable[Finding]:
    if facts.extent < FAR:
        yield (
            DOUBTFUL,
            f"the camera hardly moves ({facts.extent:.2f} of the depth), so depth is the network's guess and nothing confirms it",
            "move the camera sideways; the rotation can be used",
        )


def _praise(facts: Facts) -> Iterable[str]:
    if math.isfinite(facts.agreement):
        yield f"images look as the result predicts (agreement {facts.agreement:.2f} of 1)"
    if math.isfinite(facts.held):
        yield f"points that were followed hold {facts.held:.0%} of the keyframes"
    if facts.loops:
        yield f"{facts.loops} loops closed"
