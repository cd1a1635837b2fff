"""Scores of a whole recording against its truth, next to trivial baselines: depth, rotation, trajectory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import geometry
from ..files import write_tum
from ..types import F32, F64
from . import RatioHistogram, ate_baselines, ate_rmse, depth_errors, rotation_error_deg, rpe_rmse
from .poses import translation_lengths
from .window import mean_depth

STOPPED = "evo, which takes seconds, is left out after a signal"


class DepthScores:
    """Depth errors on the published pixels, frame by frame, of come_ros and, on the same pixels, of trivial baselines. Memory use
    does not depend on the number of frames.

    scales: metres per unit of our depth, one for each frame that could be compared.
    """

    def __init__(self) -> None:
        self.scales: list[float] = []
        self._frames = self._known = self._compared = 0
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._histograms: dict[str, RatioHistogram] = {}
        self._mean: F32 | None = None

    def add(self, ours: F32, real: F32) -> None:
        """One frame: published depth (h, w), NaN where none, and the truth on the same pixels, in metres."""
        known = np.isfinite(real) & (real > 0)
        mask = known & np.isfinite(ours)
        self._frames += 1
        self._known += int(known.sum())
        self._compared += int(mask.sum())
        if not mask.any():
            return
        self.scales.append(float(np.median(real[mask] / ours[mask])))
        if self._mean is None or self._mean.shape != ours.shape:
            self._mean = mean_depth(ours.shape)
        nulls = {"constant depth": np.ones(ours.shape, np.float32), "mean depth map": self._mean}
        for name, depth in {"come_ros": ours, **nulls}.items():
            error = depth_errors(depth, real, mask)
            self._sums[name] = self._sums.get(name, 0) + np.array([error.abs_rel, error.delta])
            self._histograms.setdefault(name, RatioHistogram()).add(depth, real, mask)

    @property
    def scale(self) -> float | None:
        """Metres in one unit of ours, the median over frames; None if nothing could be compared."""
        return float(np.median(self.scales)) if self.scales else None

    def result(self) -> dict[str, Any] | None:
        """None if nothing could be compared."""
        if not self._compared:
            return None
        once = {name: histogram.errors() for name, histogram in self._histograms.items()}
        return {
            "frames": self._frames,
            "coverage": self._compared / self._known,
            "scale": self.scale,
            "mean_depth_map": "training rooms",
            "per_frame": {
                name: dict(zip(("abs_rel", "delta"), (total / len(self.scales)).tolist(), strict=True))
                for name, total in self._sums.items()
            },
            "per_sequence": {name: {"abs_rel": e.abs_rel, "delta": e.delta} for name, e in once.items()},
        }


def rotation_scores(odom_from_camera: Mapping[int, F64], world_from_camera: Mapping[int, F64]) -> dict[str, Any] | None:
    """Angles between consecutive used frames and their errors, compared with no rotation and with the constant rotation that fits
    the truth best."""
    stamps = sorted(world_from_camera)
    if len(stamps) < 2:
        return None
    both = (odom_from_camera, world_from_camera)
    ours, real = (np.stack([poses[t][:3, :3] for t in stamps]) for poses in both)
    steps = [np.swapaxes(r[:-1], 1, 2) @ r[1:] for r in (ours, real)]
    off = rotation_error_deg(*steps)
    null = rotation_error_deg(np.broadcast_to(np.eye(3), steps[1].shape), steps[1])
    constant = rotation_error_deg(np.broadcast_to(geometry.average_rotation(steps[1]), steps[1].shape), steps[1])
    errors = {"come_ros": off, "no rotation": null, "constant rotation": constant}
    return {
        "pairs": len(off),
        "median_deg": {name: float(np.median(e)) for name, e in errors.items()},
        "rmse_deg": {name: float(np.sqrt(np.mean(e**2))) for name, e in errors.items()},
    }


def trajectory_scale(odom_from_camera: Mapping[int, F64], world_from_camera: Mapping[int, F64]) -> float | None:
    """The truth's units in one of ours, as the alignment of the paths has it; None for fewer than three poses."""
    stamps = sorted(world_from_camera)
    if len(stamps) < 3:
        return None
    ours, real = (np.stack([poses[t][:3, 3] for t in stamps]) for poses in (odom_from_camera, world_from_camera))
    return float(geometry.umeyama(ours, real)[0])


def trajectory_scores(
    odom_from_camera: Mapping[int, F64],
    world_from_camera: Mapping[int, F64],
    depth_scale: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """ATE and RPE (between consecutive used frames) by evo, aligned by Sim(3) and, `_se3`, with the scale left as it is; None for
    fewer than three poses. Where evo has no figures, or `stopped`, which is polled, they are our own; problem: why.

    Trivial baselines: see ate_baselines, each with the scale that suits it best; for RPE not moving, and the constant velocity in the
    camera's own axes that fits the truth best.
    scale: the truth's units in one of ours, as the alignment of the path has it. depth_scale: as depth has it, if that is known; then also
    short: how many times too short the path is for the depth, scale / depth_scale; length_ratio: its length over the true one, and
    ate_depth_scale_rmse_m, both under that scale.
    """
    stamps = sorted(world_from_camera)
    if len(stamps) < 3:
        return None
    real = np.stack([world_from_camera[t] for t in stamps])
    positions = real[:, :3, 3]
    steps = (geometry.inverse(real[:-1]) @ real[1:])[:, :3, 3]
    still = ate_baselines(real)
    nulls = {"not moving": _rms(steps), "constant velocity": _rms(steps - steps.mean(axis=0))}
    pairs = ("--delta", "1", "--delta_unit", "f")
    calls = {
        "ate_rmse_m": ("evo_ape", "-as"),
        "ate_se3_rmse_m": ("evo_ape", "-a"),
        "rpe_translation_rmse_m": ("evo_rpe", "-as", "-r", "trans_part", *pairs),
        "rpe_translation_se3_rmse_m": ("evo_rpe", "-a", "-r", "trans_part", *pairs),
        "rpe_rotation_rmse_deg": ("evo_rpe", "-r", "angle_deg", *pairs),
    }
    given_up = threading.Event()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        estimate, reference = Path(folder, "estimate.tum"), Path(folder, "truth.tum")
        write_tum(estimate, {t: odom_from_camera[t] for t in stamps})
        write_tum(reference, {t: world_from_camera[t] for t in stamps})

        def asked() -> bool:
            return given_up.is_set() or stopped()

        jobs = [pool.submit(_evo, asked, call[0], reference, estimate, *call[1:]) for call in calls.values()]
        try:
            results = dict(zip(calls, (job.result() for job in jobs), strict=True))
        except BaseException:  # the pool waits for its jobs
            given_up.set()
            raise
    out: dict[str, Any] = {
        "poses": len(stamps),
        "length_m": float(np.linalg.norm(np.diff(positions, axis=0), axis=1).sum()),
    }
    for name, result in results.items():
        if name.startswith("ate"):
            out[name] = {"come_ros": result.get("rmse"), **still}
        elif name.startswith("rpe_translation"):
            out[name] = {"come_ros": result.get("rmse"), **nulls}
        else:
            out[name] = result.get("rmse")  # its trivial baseline is among the rotation scores
    ours = np.stack([odom_from_camera[t] for t in stamps])
    out["scale"] = trajectory_scale(odom_from_camera, world_from_camera)
    if depth_scale is not None and np.isfinite(depth_scale):
        out["depth_scale"] = depth_scale
        out["short"] = out["scale"] / depth_scale
        out["length_ratio"], _ = translation_lengths(ours, real, depth_scale)
        scaled = geometry.transform_poses(depth_scale, np.eye(3), np.zeros(3), ours)
        out["ate_depth_scale_rmse_m"] = ate_rmse(scaled, real, with_scale=False)
    if problems := "; ".join(dict.fromkeys(r["problem"] for r in results.values() if "problem" in r)):
        out["problem"] = f"{problems}; these figures are come_ros' own"
        _fill(out, ours, real)
    return out


def _fill(path: dict[str, Any], ours: F64, real: F64) -> None:
    """Fills in our own figures for those of evo."""
    for suffix, with_scale in (("", True), ("_se3", False)):
        path[f"ate{suffix}_rmse_m"]["come_ros"] = ate_rmse(ours, real, with_scale)
        path[f"rpe_translation{suffix}_rmse_m"]["come_ros"], turn = rpe_rmse(ours, real, with_scale=with_scale)
        path["rpe_rotation_rmse_deg"] = turn


def _rms(vectors: F64) -> float:
    """Root of the mean squared length of (N, 3)."""
    return float(np.sqrt((vectors**2).sum(axis=1).mean()))


def _evo(stopped: Callable[[], bool], command: str, reference: Path, estimate: Path, *options: str) -> dict[str, Any]:
    """Statistics of an evo command, which is GPL and therefore run, not imported; {"problem": ...} if it has none."""
    if stopped():
        return {"problem": STOPPED}
    sibling = Path(sys.executable).with_name(command)
    program = str(sibling) if sibling.is_file() else shutil.which(command)
    if program is None:
        return {"problem": f"{command} is not installed (pip install evo)"}
    with tempfile.TemporaryDirectory() as home:  # evo's settings folder is created at its first run
        results = Path(home, "results.zip")
        process = subprocess.Popen(
            [program, "tum", str(reference), str(estimate), *options, "--no_warnings", "--save_results", str(results)],
            env={**os.environ, "HOME": home, "MPLBACKEND": "Agg"}, text=True, start_new_session=True,  # Ctrl-C is left to us
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        while True:
            try:
                text, _ = process.communicate(timeout=0.1)
                break
            except subprocess.TimeoutExpired:
                if stopped():
                    process.kill()
        if process.returncode and stopped():
            return {"problem": STOPPED}
        if process.returncode or not results.is_file():
            last = text.strip().splitlines() or ["no output"]
            return {"problem": f"{command}: {last[-1]}"}
        with zipfile.ZipFile(results) as archive:
            return json.loads(archive.read("stats.json"))
