"""The picture of a run: input, depth, true depth, confidence of some frames, and the cloud from above with both paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import geometry
from ...datasets.rosbag import Bag
from ...types import F32, F64, U8
from .live_scores import Published, Truth

SEPARATOR = "   |   "  # between the figures in a title
ROWS = 3
POINTS_OF_A_FRAME = 6000
POINTS = 400_000  # limit of points drawn: a picture of this size shows no more
COVERED = 80_000  # area of all dots on the map, in square points: a sparse cloud is drawn with larger dots
ABOVE_CAMERA = 0.25  # the cloud is cut at this height above the camera, so that no ceiling hides the room


@dataclass(frozen=True, eq=False)
class Shown:
    """A frame in the picture. image: the input (H, W, 3), or None. depth: (h, w) as published, confidence: (h, w), both NaN where
    nothing was published. real: (h, w) true depth in metres, or None. overlay: (h, w, 3) the image as the model saw it, dark where its
    tokens were merged, or None if none were. tracks: (n, 2) pixels of the input where points are tracked, known: (n,) bool, which of
    them are landmarks, landmarks: (m, 3) places of those in the odometry frame; None if there are none."""

    stamp_ns: int
    image: U8 | None
    depth: F32
    confidence: F32
    real: F32 | None
    overlay: U8 | None = None
    tracks: F64 | None = None
    known: NDArray[np.bool_] | None = None
    landmarks: F64 | None = None


@dataclass(eq=False)
class Overview:
    """Data of the picture. frames: a few, evenly spread over the run. start_ns: what their times are relative to. points: (N, 3) in
    the odometry frame, colours: (N, 3) in 0..1. odom_from_camera, world_from_camera: stamp -> (4, 4) as published and true, where
    known. scale: metres per unit of the published depth, None if unknown. cloud: description of the cloud, for its title."""

    frames: list[Shown]
    start_ns: int
    points: F64
    colours: NDArray[np.float32]
    odom_from_camera: Mapping[int, F64]
    world_from_camera: Mapping[int, F64] = field(default_factory=dict)
    scale: float | None = None
    cloud: str = "published cloud"


def overview_of(bag: str | Path, recording: Published, truth: Truth, topic: str | None = None) -> Overview:
    """The overview of a live run's recording. Needs at least one frame with depth."""
    known = sorted(truth.depth) or sorted(recording.depth)
    stamps = [known[i] for i in evenly(len(known))]
    with Bag(bag, topic) as source:
        pictures = {f.stamp_ns: f.image for f in source.iter_frames() if f.stamp_ns in stamps}
    overlays = recording.overlay if recording.is_merged else {}
    frames = [
        Shown(t, pictures.get(t), recording.depth[t], _confidence(recording, t), truth.depth.get(t), overlays.get(t))
        for t in stamps
    ]
    points, colours = _cloud(recording)
    scales = [_scale(recording.depth[t], real) for t, real in truth.depth.items()]
    return Overview(
        frames, min(recording.depth), points, colours, recording.odom_from_camera, truth.world_from_camera,
        float(np.median(scales)) if scales else None, f"published cloud of {len(recording.points)} frames",
    )  # fmt: skip


class Evenly:
    """Keeps some of a stream of items, evenly spread."""

    def __init__(self, least: int = 6) -> None:
        self.kept: list[Any] = []
        self._least, self._every, self._count = least, 1, 0

    def offer(self, thing: Any) -> None:
        if self._count % self._every == 0:
            self.kept.append(thing)
        if len(self.kept) == 2 * self._least:
            del self.kept[1::2]
            self._every *= 2
        self._count += 1


def evenly(count: int) -> list[int]:
    """Indices of up to ROWS of `count` things, evenly spread and away from the ends."""
    index = np.linspace(0, count - 1, 2 * min(ROWS, count) + 1).round().astype(int)[1::2]
    return sorted(set(index.tolist()))


def wrapped(title: str, width: int) -> str:
    """`title` with its parts (between |) on as many lines as it takes to keep each below `width` characters."""
    lines: list[str] = []
    for line in title.splitlines():
        parts = line.split(SEPARATOR)
        lines.append(parts[0])
        for part in parts[1:]:
            longer = lines[-1] + SEPARATOR + part
            lines[-1:] = [longer] if len(longer) <= width else [lines[-1], part]
    return "\n".join(lines)


def draw(path: Path, overview: Overview, title: str) -> None:
    """Writes the picture as PNG. Needs at least one frame."""
    from .figures import pyplot

    plt = pyplot()

    names = ["input", "depth", "true depth", "confidence"]
    if any(frame.overlay is not None for frame in overview.frames):
        names.append("merged: dark")
    figure = plt.figure(figsize=(7 + 3 * len(names), 8), dpi=85, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[0.4125 * len(names), 1])
    axes = left.subplots(len(overview.frames), len(names), squeeze=False)
    confidences = np.concatenate([frame.confidence.ravel() for frame in overview.frames])
    confidences = confidences[np.isfinite(confidences)]
    sure = np.percentile(confidences, [2, 98]) if len(confidences) else np.array([0.0, 1.0])
    for row, frame in zip(axes, overview.frames, strict=True):
        _draw_frame(left, row, frame, overview.start_ns, sure)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(f"{name}\n{axis.get_title()}" if axis.get_title() else f"{name}\n", fontsize=11)
    _draw_map(right.subplots(), overview)
    figure.suptitle(wrapped(title, int(9 * figure.get_figwidth())), fontsize=12)
    figure.savefig(path, format="png")
    plt.close(figure)


def _draw_frame(figure: Any, row: Any, frame: Shown, start_ns: int, sure: NDArray[np.float64]) -> None:
    """sure: (2,) range of the confidence's colours, the same for all rows."""
    real = frame.real
    scale = _scale(frame.depth, real)
    shown = frame.depth * scale
    known = real if real is not None else shown
    low, high = np.nanpercentile(known, [2, 98]) if np.isfinite(known).any() else (0.0, 1.0)
    colours = {"cmap": "turbo_r", "vmin": low, "vmax": high, "interpolation": "nearest"}
    if frame.image is not None:
        row[0].imshow(frame.image)
        if frame.tracks is not None:
            landmark = np.zeros(len(frame.tracks), bool) if frame.known is None else frame.known
            for which, colour in ((~landmark, "#ffb000"), (landmark, "#40ff60")):
                row[0].plot(*frame.tracks[which].T, ".", color=colour, ms=1.5, mew=0)
            row[0].set_title(f"{len(landmark)} tracks, {int(landmark.sum())} landmarks (green)", fontsize=9)
            height, width = frame.image.shape[:2]
            row[0].set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    row[0].set_ylabel(f"{(frame.stamp_ns - start_ns) * 1e-9:.1f} s", fontsize=11)
    drawn = row[1].imshow(shown, **colours)
    row[1].set_title(f"scaled x{scale:.2f} to the truth" if real is not None else "in the model's unit", fontsize=9)
    if real is None:
        row[2].text(0.5, 0.5, "not known", ha="center", va="center", transform=row[2].transAxes)
        row[2].set_box_aspect(shown.shape[0] / shown.shape[1])
    else:
        row[2].imshow(real, **colours)
    figure.colorbar(
        drawn, ax=[row[1], row[2]], label=f"{'m' if real is not None else 'model units'}; red is near", pad=0.01
    )
    trust = row[3].imshow(frame.confidence, cmap="viridis", vmin=sure[0], vmax=sure[1], interpolation="nearest")
    figure.colorbar(trust, ax=row[3], pad=0.02, label="yellow is sure")
    share = float(np.isfinite(frame.confidence).mean())
    row[3].set_title(f"{100 * share:.0f} % of the pixels published", fontsize=9)
    if frame.overlay is not None:
        row[4].imshow(frame.overlay, interpolation="nearest")
    for axis in row:
        axis.set(xticks=[], yticks=[])
        axis.set_facecolor("0.85")  # pixels that are left out


def _scale(depth: F32, real: F32 | None) -> float:
    both = np.isfinite(depth) & np.isfinite(real) & (depth > 0) if real is not None else np.zeros(1, bool)
    return float(np.median(real[both] / depth[both])) if real is not None and both.any() else 1.0


def _confidence(recording: Published, stamp: int) -> F32:
    """(h, w) confidence of the published points at their pixels; NaN where there is no point."""
    out = np.full(recording.depth[stamp].shape, np.nan, np.float32)
    points = recording.points.get(stamp)
    if points is None or recording.points_frame != recording.camera or not len(points):
        return out
    xyz = np.stack([points[a] for a in "xyz"], axis=-1)
    finite = np.isfinite(xyz).all(axis=-1)
    u, v = np.rint(geometry.project(xyz[finite], recording.intrinsics[stamp])).astype(int).T
    inside = (u >= 0) & (v >= 0) & (u < out.shape[1]) & (v < out.shape[0])  # type: ignore[misc]
    out[v[inside], u[inside]] = points["conf"][finite][inside]
    return out


def _draw_map(axis: Any, overview: Overview) -> None:
    """The cloud and the path as published, from above: moved as one piece into the truth's world, if there is one."""
    odom, truth = overview.odom_from_camera, overview.world_from_camera
    scale, rotation, translation = _world_from_odom(overview)
    path = np.stack([odom[t][:3, 3] for t in sorted(odom)])
    path = scale * path @ rotation.T + translation
    xyz = scale * overview.points @ rotation.T + translation
    known = sorted(truth)
    heights = np.array([truth[t][2, 3] for t in known]) if known else path[:, 2]
    cut = heights.max() + ABOVE_CAMERA * (1.0 if known else float(np.ptp(xyz[:, 2])) if len(xyz) else 0.0)
    low = xyz[:, 2] < cut
    xyz, colours = xyz[low], overview.colours[low]
    order = np.argsort(xyz[:, 2])
    size = float(np.clip(COVERED / max(1, len(xyz)), 2, 40))
    axis.scatter(*xyz[order, :2].T, c=colours[order], s=size, linewidths=0, rasterized=True)

    landmarks = [frame.landmarks for frame in overview.frames if frame.landmarks is not None]
    if landmarks:
        places = scale * np.concatenate(landmarks) @ rotation.T + translation
        places = places[places[:, 2] < cut]
        axis.plot(*places[:, :2].T, ".", color="#40ff60", ms=1.5, mew=0, alpha=0.7)

    paths = [(path, "#ff2a2a", "-", "estimated, as the cloud lies")]
    if known:
        real = np.stack([truth[t][:3, 3] for t in known])
        paths.insert(0, (real, "white", "-", "true path"))
        if len(known) > 2:
            ours = np.stack([odom[t][:3, 3] for t in known])
            s, r, t = geometry.umeyama(ours, real)
            paths.append((s * ours @ r.T + t, "#ffb000", "--", "estimated, Sim(3)-aligned as scored"))
    for line, colour, style, label in paths:
        wide = 6.0 if label == "true path" else 2.2  # so that it is visible under ours where they agree
        axis.plot(*line[:, :2].T, "-", color="black", lw=wide + 1.5, alpha=0.8)
        axis.plot(*line[:, :2].T, style, color=colour, lw=wide, label=label)
        axis.plot(*line[0, :2], "o", color=colour, mec="black", ms=8)
    first = paths[0][0][:, :2]  # always in view: the true path, or ours if there is no other
    around = np.percentile(xyz[:, :2], [1, 99], axis=0) if len(xyz) else first
    (x0, y0), (x1, y1) = (
        np.minimum(around.min(axis=0), first.min(axis=0)),
        np.maximum(around.max(axis=0), first.max(axis=0)),
    )
    margin = 0.1 * max(x1 - x0, y1 - y0, 1e-3)
    axis.set(xlim=(x0 - margin, x1 + margin), ylim=(y0 - margin, y1 + margin), aspect="equal")
    unit = "m" if known else "model units"
    axis.set(xlabel=f"x, {unit}", ylabel=f"y, {unit}", facecolor="0.25")
    axis.set_title(f"{overview.cloud} from above, cut above the camera", fontsize=11)
    # below: inside, it would hide a path
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=3, facecolor="0.6", fontsize=9)


def _world_from_odom(overview: Overview) -> tuple[float, F64, F64]:
    """Scale, rotation and shift that align all odometry with the truth: scale of the depths, mean rotation and position.

    Not the Sim(3) of the paths alone: where those disagree it shrinks everything to a dot.
    """
    stamps = sorted(overview.world_from_camera)
    if not stamps:
        return 1.0, np.eye(3), np.zeros(3)
    both = (overview.odom_from_camera, overview.world_from_camera)
    ours, real = (np.stack([p[t] for t in stamps]) for p in both)
    rotation = geometry.average_rotation(real[:, :3, :3] @ np.swapaxes(ours[:, :3, :3], 1, 2))
    if overview.scale is not None:
        scale = overview.scale
    elif len(stamps) > 2:
        scale = geometry.umeyama(ours[:, :3, 3], real[:, :3, 3])[0]
    else:
        scale = 1.0
    return scale, rotation, (real[:, :3, 3] - scale * ours[:, :3, 3] @ rotation.T).mean(axis=0)


def _cloud(recording: Published) -> tuple[F64, NDArray[np.float32]]:
    """Some points of every frame in the odometry frame (N, 3), and their colours (N, 3) in 0..1."""
    rng = np.random.default_rng(0)
    every, colours = [np.empty((0, 3))], [np.empty((0, 3), np.float32)]
    for stamp in sorted(recording.odom_from_camera):
        points = recording.points.get(stamp)
        if points is None or not len(points):
            continue
        xyz, colour = points_and_colours(points[rng.permutation(len(points))[:POINTS_OF_A_FRAME]])
        in_camera = recording.points_frame == recording.camera
        every.append(geometry.apply(recording.odom_from_camera[stamp], xyz) if in_camera else xyz)
        colours.append(colour)
    return np.concatenate(every), np.concatenate(colours)


def points_and_colours(points: NDArray[Any]) -> tuple[F64, NDArray[np.float32]]:
    """(N, 3) places and (N, 3) colours in 0..1 of the finite ones among the points of cloud.POINT_DTYPE."""
    xyz = np.stack([points[a] for a in "xyz"], axis=-1).astype(np.float64)
    finite = np.isfinite(xyz).all(axis=-1)
    bits = np.ascontiguousarray(points["rgb"][finite]).view(np.uint32)
    colours = np.stack([(bits >> s) & 255 for s in (16, 8, 0)], axis=-1).astype(np.float32) / np.float32(255)
    return xyz[finite], colours


def accuracy_text(metrics: Mapping[str, Any]) -> list[str]:
    """The main errors, with their trivial baselines, for the title."""
    parts = []
    if metrics["depth"]:
        values = metrics["depth"]["per_frame"]
        parts.append("delta < 1.25: " + ", ".join(f"{k} {v['delta']:.2f}" for k, v in values.items()))
    if metrics["trajectory"] and metrics["trajectory"]["ate_rmse_m"]["come_ros"] is not None:
        parts.append("ATE: " + ", ".join(f"{k} {v:.2f} m" for k, v in metrics["trajectory"]["ate_rmse_m"].items()))
    return parts
