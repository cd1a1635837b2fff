"""Whether the covariances of ~/odometry tell how wrong its poses and velocities are, and the constants that make them do so.

  python test/benchmark/accuracy/covariance.py             run what this commit has not run yet -> results/covariance.json, .md
  python test/benchmark/accuracy/covariance.py office rpy  run only these (names as in the table); the table has all there are
  python test/benchmark/accuracy/covariance.py --fit       print the constants of drift.py and odometry.py that fit best

With --fit the table is made with the new constants, and each recording is scored by what the others give.

NEES is e' C^-1 e / 6, where e is the error: position, then rotation as a vector from the left, in the odometry frame. It is taken of

- since start: the pose of each image, published at the camera's rate. Truth and path agree at the first image; C is what is published.
- in a second: the keyframe that ends a window, relative to one that ended a window up to a second earlier (the last one, where windows
  are further apart); C is what the chain of windows adds in between. A filter that is given differences sees this.
- twist: the velocity at each image in the camera's axes, of recordings of at least 5 images a second; C is what is published.

The scale is unknown and marked so: the node publishes 9999 for lengths until scale.mode says otherwise. Here the truth is brought to the
unit of the path, once for the whole recording, by the Sim(3) that lays the truth onto the path. The path onto the truth would not do: a
least-squares scale is too small by the noise of what it is applied to, and the truth has less of it. Motion capture errs itself: 5 mm and
0.3 deg on each axis are added to C for recordings (the benchmark states below 10 mm and 0.5 deg; Sturm et al., IROS 2012), and the
truth of fr1 and office is read 20 ms earlier, by which its stamps are late.

Each figure is the median over the images of a recording, and then over recordings. A perfect covariance gives 0.89; below 0.5 it is too
unsure, above 2 too sure. One recording is hardly more than one draw of "since start". Rooms named "fit" tell the constants; those named
"test" do not.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation, Slerp
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.stamped import TINY, git, shared, write_result

from come_ros.config import Config
from come_ros.files import whole_file
from come_ros.geometry import inverse, nearest_rotation, umeyama, vector_from_rotation
from come_ros.pipeline import ReconstructionPipeline
from come_ros.tracking import drift, odometry
from come_ros.tracking.odometry import UNKNOWN, Located
from come_ros.types import F64, Frame

RESULTS = Path(__file__).parent / "results"
REAL = {"office": 0.02, "rpy": 0.02, "rpy_long": 0.02, "cabinet": 0.0}
"""name -> s that the stamps of its truth are late"""
FOLDERS = {
    "office": "tum_fr3_office",
    "rpy": "tum_fr1_rpy",
    "rpy_long": "tum_fr1_rpy_long",
    "cabinet": "tum_fr3_cabinet",
}
ROOMS = {
    "fit": [(20_000_720 + i, (10.0, 3.3)[i % 2]) for i in range(12)],
    "test": [(20_000_740 + i, (10.0, 3.3)[i % 2]) for i in range(8)],
}
"""seeds, which no training and no test split uses, and images a second"""
ROOM_FRAMES, ROOM_SIZE = 80, (320, 240)
FINER = 4  # times as many true poses as images, which tell the velocity
TRUTH_SIGMA = 0.005, float(np.deg2rad(0.3))  # of motion capture: m, rad
SECOND_NS = 1_000_000_000
LEAST_HZ = 5.0  # of images, for a velocity
FREEDOM = 4.0  # of the Student distribution that is fitted: some windows err by far more than the others

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Constants:
    """Those of drift.py and odometry.py. network: factor on NETWORK_TURN and NETWORK_MOVE."""

    understated: float = drift.UNDERSTATED
    unit_share: float = drift.UNIT_SHARE
    network: float = 1.0
    change_share: float = odometry.CHANGE_SHARE
    twist_share: float = odometry.TWIST_SHARE


# Runs


def recorded(name: str) -> tuple[Iterator[Frame], Arrays]:
    from come_ros.datasets.sequence import open_sequence

    sequence = open_sequence(shared() / "data" / "real" / FOLDERS[name])
    truth = sequence.truth()
    stamps = sorted(truth)
    return sequence.iter_frames(), {
        "truth_stamps": np.array(stamps),
        "truth_poses": np.stack([truth[t] for t in stamps]),
    }


def rendered(seed: int, hz: float, count: int = ROOM_FRAMES) -> tuple[Iterator[Frame], Arrays]:
    from come_ros.datasets.rooms import raycast, splits
    from come_ros.datasets.rooms.camera import camera_path, degrade
    from come_ros.datasets.rooms.scene import make_scene

    scene = make_scene(seed)
    path = camera_path(scene, seed, FINER * (count - 1) + 1, FINER * hz, 1.0)
    k = scene.intrinsics(*ROOM_SIZE)
    parts = np.split(path[::FINER], range(8, count, 8))
    images = np.concatenate([raycast.render(scene, part, k, *ROOM_SIZE, 1)[0] for part in parts])
    images = degrade(images, np.random.default_rng((seed, splits.GENERATOR_VERSION, splits.STREAM_PHOTOMETRIC)))
    stamps = splits.EPOCH_NS + np.round(np.arange(len(path)) * 1e9 / (FINER * hz)).astype(np.int64)
    frames = (Frame(image, int(stamp), "camera", k) for image, stamp in zip(images, stamps[::FINER], strict=True))
    return frames, {"truth_stamps": stamps, "truth_poses": path}


class Watched(drift.Drift):
    """Remembers what each window adds."""

    def __init__(self) -> None:
        super().__init__()
        self.first: list[F64] = []
        self.added: list[F64] = []
        self.newest: list[F64] = []

    def add(self, poses: F64, covariance: F64) -> F64:
        self.first.append(poses[0])
        self.added.append(covariance)
        self.newest.append(poses[-1])
        return super().add(poses, covariance)


def watched(frames: Iterator[Frame]) -> Arrays:
    """Poses of all images, and what each window added, of one run with the defaults."""
    pipeline = ReconstructionPipeline(Config().replace(device="cpu", threads=1))
    pipeline._odom_frame.drift = chain = Watched()
    images: list[tuple[Any, ...]] = []
    windows: list[tuple[int, bool]] = []

    def locate(poses: list[Located]) -> None:
        landmarks = pipeline.odometry._landmarks
        for p in poses:
            assert landmarks is not None
            own = p.covariance - drift.carried(
                landmarks.covariance, p.odom_from_camera[:3, 3] - landmarks.odom_from_camera[-1][:3, 3]
            )
            images.append(
                (
                    p.frame.stamp_ns,
                    p.odom_from_camera,
                    own,
                    landmarks.stamps_ns[-1],
                    p.twist,
                    p.twist_covariance,
                    p.lost,
                )
            )

    for submap in pipeline.run(frames, located=locate):
        if submap.alignment.accepted and len(submap):
            windows.append((submap.frames[-1].stamp_ns, submap.refinement.refined > 0))
    names = ("stamp", "pose", "own", "window", "twist", "twist_covariance", "lost")
    out = {f"image_{n}": np.array(column) for n, column in zip(names, zip(*images, strict=True), strict=True)}
    out |= {
        f"window_{n}": np.array(column)
        for n, column in zip(("stamp", "refined"), zip(*windows, strict=True), strict=True)
    }
    return out | {
        "window_first": np.array(chain.first), "window_added": np.array(chain.added), "window_pose": np.array(chain.newest),
        "made_with": np.array(dataclasses.astuple(Constants())),
    }  # fmt: skip


# Errors


def truth_at(truth: Arrays, stamps: np.ndarray, late_s: float) -> F64:
    """(n, 4, 4), between the true poses that there are."""
    start = truth["stamps"][0]
    known = (truth["stamps"] - start) * 1e-9
    wanted = np.clip((stamps - start) * 1e-9 - late_s, known[0], known[-1])
    out = np.tile(np.eye(4), (len(wanted), 1, 1))
    out[:, :3, :3] = Slerp(known, Rotation.from_matrix(truth["poses"][:, :3, :3]))(wanted).as_matrix()
    for axis in range(3):
        out[:, axis, 3] = np.interp(wanted, known, truth["poses"][:, axis, 3])
    return out


def errors(poses: F64, truth: F64, pairs: np.ndarray) -> F64:
    """(m, 6) of pose j relative to pose i, for `pairs` (m, 2) of i and j, in the odometry frame."""
    i, j = pairs.T
    wanted = poses[i] @ inverse(truth[i]) @ truth[j]
    turn = vector_from_rotation(nearest_rotation(poses[j, :3, :3] @ np.swapaxes(wanted[:, :3, :3], 1, 2)))
    return np.concatenate([poses[j, :3, 3] - wanted[:, :3, 3], turn], axis=1)


class Run:
    """One recording: errors, and what the covariances of them are made of."""

    def __init__(self, name: str, arrays: Arrays) -> None:
        """name: of REAL, or of a room. arrays: of `watched`, and the truth."""
        self.name, self.kind = name, "recording" if name in REAL else name.split()[0]
        self.made_with = Constants(*arrays["made_with"].tolist())
        late_s, noise = REAL.get(name, 0.0), TRUTH_SIGMA if name in REAL else (0.0, 0.0)
        truth = {"stamps": arrays["truth_stamps"], "poses": arrays["truth_poses"]}
        low, high = truth["stamps"][[0, -1]] + np.array([-5_000_000, 5_000_000])
        ours = {k.removeprefix("image_"): v for k, v in arrays.items() if k.startswith("image_")}
        inside = (ours["stamp"] >= low) & (ours["stamp"] <= high)
        self.image = {k: v[inside] for k, v in ours.items()}
        self.window = {k.removeprefix("window_"): v for k, v in arrays.items() if k.startswith("window_")}
        true = truth_at(truth, self.image["stamp"], late_s)
        self.unit = umeyama(true[:, :3, 3], self.image["pose"][:, :3, 3])[0]
        true[:, :3, 3] *= self.unit
        n = len(true)
        self.since = errors(self.image["pose"], true, np.stack([np.zeros(n - 1, int), np.arange(1, n)], axis=1))
        self.noise = np.diag(np.repeat([(self.unit * noise[0]) ** 2, noise[1] ** 2], 3))
        stamps = self.window["stamp"]
        kept = np.flatnonzero((stamps >= low) & (stamps <= high))
        self.pairs = np.array(
            [(i, j) for n, j in enumerate(kept) for i in kept[:n][-1:] if stamps[j] - stamps[i] >= SECOND_NS]
            + [(i, j) for n, j in enumerate(kept) for i in kept[:n][stamps[j] - stamps[kept[:n]] < SECOND_NS][:1]]
        ).reshape(-1, 2).astype(int)  # fmt: skip
        at_windows = truth_at(truth, stamps, late_s)
        at_windows[:, :3, 3] *= self.unit
        self.steps = errors(self.window["pose"], at_windows, self.pairs)
        self._twists(truth, late_s, noise)

    def _twists(self, truth: Arrays, late_s: float, noise: tuple[float, float]) -> None:
        stamps = self.image["stamp"]
        spacing = float(np.median(np.diff(stamps))) * 1e-9
        known = self.image["twist_covariance"][:, 0, 0] < UNKNOWN
        if spacing > 1 / LEAST_HZ:
            known[:] = False
        near = max(float(np.median(np.diff(truth["stamps"]))) * 1e-9, 0.02)
        before, now, after = (truth_at(truth, stamps[known], late_s + d) for d in (near, 0.0, -near))
        step = [inverse(now) @ other for other in (before, after)]
        linear = self.unit * (step[1] - step[0])[:, :3, 3]
        angular = vector_from_rotation(step[1][:, :3, :3]) - vector_from_rotation(step[0][:, :3, :3])
        self.twist_errors = self.image["twist"][known] - np.concatenate([linear, angular], axis=1) / (2 * near)
        spread = np.array([self.unit * noise[0], noise[1]]) * np.sqrt(2) / (2 * near)
        self.twist_noise = np.diag(np.repeat(spread**2, 3))
        change = np.diff(self.image["twist"], axis=0, prepend=np.zeros((1, 6)))[known]
        squares = [(a.reshape(-1, 2, 3) ** 2).mean(axis=2) for a in (change, self.image["twist"][known])]
        self.change, self.size = (np.repeat(s, 3, axis=1) for s in squares)
        used = self.made_with
        unseen = used.change_share**2 * self.change + used.twist_share**2 * self.size
        by_poses = self.image["twist_covariance"][known] - unseen[:, :, None] * np.eye(6)
        self.by_poses = by_poses

    def added(self, c: Constants) -> F64:
        """(w, 6, 6) what each window adds."""
        used = self.made_with
        bundle, network = (c.understated / used.understated) ** 2, (c.network / used.network) ** 2
        return self.window["added"] * np.where(self.window["refined"], bundle, network)[:, None, None]

    def covariances(self, c: Constants) -> tuple[F64, F64]:
        """(w, 6, 6) since the start at each window, and (m, 6, 6) of the pairs."""
        added, first, newest = self.added(c), self.window["first"], self.window["pose"]

        def from_window(i: int, to: int) -> list[F64]:
            chain, out = drift.Drift(c.unit_share), []
            if i >= 0:
                chain._newest = newest[i]
            for j in range(i + 1, to + 1):
                out.append(chain.add(np.stack([first[j], newest[j]]), added[j]))
            return out

        since = from_window(-1, len(newest) - 1)
        pairs = [from_window(i, j)[-1] for i, j in self.pairs]
        levers = newest[self.pairs[:, 1], :3, 3] - newest[self.pairs[:, 0], :3, 3]
        both = [p + self.noise + drift.carried(self.noise, lever) for p, lever in zip(pairs, levers, strict=True)]
        return np.stack(since), np.array(both).reshape(-1, 6, 6)

    def normalised(self, c: Constants) -> dict[str, tuple[F64, F64]]:
        """kind -> NEES (n,) and log of the covariances' determinants (n,)."""
        since, pairs = self.covariances(c)
        row = {int(stamp): i for i, stamp in enumerate(self.window["stamp"])}
        own = (c.understated / self.made_with.understated) ** 2
        total, place = [], self.image["pose"][:, :3, 3]
        for k in range(1, len(place)):
            w = row[int(self.image["window"][k])]
            lever = place[k] - self.window["pose"][w, :3, 3]
            noise = self.noise + drift.carried(self.noise, place[k] - place[0])
            total.append(drift.carried(since[w], lever) + own * self.image["own"][k] + noise)
        unseen = c.change_share**2 * self.change + c.twist_share**2 * self.size
        twist = self.by_poses + unseen[:, :, None] * np.eye(6) + self.twist_noise
        every = {
            "since start": (self.since, np.array(total)),
            "in a second": (self.steps, pairs),
            "twist": (self.twist_errors, twist),
        }
        return {kind: _normalised(*both) for kind, both in every.items() if len(both[0])}


def _normalised(error: F64, covariance: F64) -> tuple[F64, F64]:
    solved = np.linalg.solve(covariance, error[:, :, None])[:, :, 0]
    return (error * solved).sum(axis=1) / 6, np.linalg.slogdet(covariance)[1]


# Fit and tables


def fitted(runs: list[Run], start: Constants) -> Constants:
    """The constants that make the errors most likely, under a Student distribution, and then a common factor by which the medians of the
    first two kinds, of rooms and of recordings, are nearest to 1."""

    def unlikely(kinds: tuple[str, ...], c: Constants) -> float:
        costs: dict[bool, list[float]] = {}
        for run in runs:
            for kind, (nees, log_det) in run.normalised(c).items():
                if kind in kinds:
                    cost = 0.5 * log_det + 0.5 * (FREEDOM + 6) * np.log1p(6 * nees / FREEDOM)
                    costs.setdefault(run.kind == "recording", []).append(float(cost.mean()))
        return float(np.mean([np.mean(v) for v in costs.values()]))

    def best(c: Constants, names: tuple[str, ...], kinds: tuple[str, ...]) -> Constants:
        def of(x: F64) -> Constants:
            values = {n: float(np.clip(np.exp(v), 1e-3, 50.0)) for n, v in zip(names, x, strict=True)}
            return dataclasses.replace(c, **values)

        x0 = np.log([max(getattr(c, n), 1e-2) for n in names])
        found = minimize(lambda x: unlikely(kinds, of(x)), x0, method="Nelder-Mead",
                         options={"maxfev": 40 * len(names), "xatol": 0.05, "fatol": 2e-3})  # fmt: skip
        return of(found.x)

    poses = ("since start", "in a second")
    c = best(start, ("understated", "unit_share", "network"), poses)
    middle = np.exp(
        np.mean([np.log(m) for group in medians(runs, c).values() for kind, m in group.items() if kind in poses])
    )
    by = float(np.sqrt(middle))
    c = dataclasses.replace(c, understated=c.understated * by, unit_share=c.unit_share * by, network=c.network * by)
    return best(c, ("change_share", "twist_share"), ("twist",))


def of_run(run: Run, c: Constants) -> dict[str, float]:
    return {kind: float(np.median(nees)) for kind, (nees, _) in run.normalised(c).items()}


def medians(runs: list[Run], c: Constants) -> dict[str, dict[str, float]]:
    """group of recordings -> kind -> median over them."""
    return grouped({run.name: of_run(run, c) for run in runs})


def grouped(rows: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[dict[str, float]]] = {}
    for name, row in rows.items():
        kind = "recordings" if name in REAL else f"rooms, {name.split()[0]}"
        groups.setdefault(kind, []).append(row)
    return {
        group: {kind: float(np.median([r[kind] for r in members if kind in r])) for kind in dict.fromkeys(k for r in members for k in r)}
        for group, members in groups.items()
    }  # fmt: skip


def table(rows: dict[str, dict[str, float]]) -> str:
    kinds = ("since start", "in a second", "twist")
    lines = ["| | " + " | ".join(kinds) + " |", "|---|" + "---|" * len(kinds)]
    for name, row in [*rows.items(), *((f"**{g}, median**", r) for g, r in grouped(rows).items())]:
        lines.append(f"| {name} | " + " | ".join(f"{row[k]:.2f}" if k in row else "-" for k in kinds) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", help="recordings and rooms to run, by their names in the table (default: all)"
    )
    parser.add_argument(
        "--fit", action="store_true", help="fit the constants again, and score by those; writes nothing"
    )
    parser.add_argument("--again", action="store_true", help="run again what this commit has run already")
    parser.add_argument("-o", "--out", default="out/covariance", help="where runs are kept (default %(default)s)")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rooms = {f"{use} {seed} at {hz:g} Hz": (seed, hz) for use, which in ROOMS.items() for seed, hz in which}
    known = [*REAL, *rooms]
    if unknown := [n for n in args.names if n not in known]:
        parser.error(f"there is no {', '.join(unknown)}: choose of {', '.join(known)}")
    folder = Path(args.out, git("rev-parse", "--short=12", "HEAD"))
    folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for name in tqdm(known, unit="run", disable=None):
        path = folder / f"{name.replace(' ', '_')}.npz"
        wanted = not args.names or name in args.names
        if wanted and (args.again or not path.exists()):
            frames, truth = recorded(name) if name in REAL else rendered(*rooms[name])
            arrays = watched(frames) | truth
            with whole_file(path) as stream:  # another run may read what is there meanwhile
                np.savez(stream, **arrays)
        if path.exists():
            with np.load(path) as found:
                runs.append(Run(name, dict(found)))
    now = Constants()
    if not args.fit:
        rows = {run.name: of_run(run, now) for run in runs}
        about = __doc__[__doc__.index("NEES is") :]
        data = {"rows": rows, "medians": grouped(rows), "constants": dataclasses.asdict(now)}
        write_result(RESULTS, "covariance", data, f"{about}\n{table(rows)}", weights=TINY)
        print(table(rows))
        return
    told = [run for run in runs if run.kind != "test"]
    c = fitted(told, now)
    print("all of the fit:", c)
    rows = {}
    for run in tqdm(runs, unit="fit", disable=None):
        rows[run.name] = of_run(run, fitted([r for r in told if r is not run], c) if run.kind == "recording" else c)
    print(table(rows))


if __name__ == "__main__":
    main()
