"""The picture of a run: input, depth and confidence of some frames, with true depth and error of the best, the median and the worst where
there is truth; the main errors next to trivial baselines; and the cloud with both paths, from behind and above the camera."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import geometry
from ...datasets.rosbag import Bag
from ...types import F32, F64, U8
from .bars import Bars, draw_bars
from .live_scores import Published, Truth

SEPARATOR = "   |   "  # between the figures in a title
ROWS = 3
RANKS = ("best", "median", "worst")
POINTS_OF_A_FRAME = 6000
POINTS = 400_000  # limit of points drawn: a picture of this size shows no more
COVERED = 80_000  # area of all dots on the map, in square points: a sparse cloud is drawn with larger dots
MOST_ERROR = 50.0  # percent: end of the colours of the error
LOOKING_DOWN = np.deg2rad(40.0)  # of the view of the cloud
BARS_HEIGHT = 1.6  # inches
SHOWN = (3, 97)  # percentiles of the cloud that are always in view: what lies farther is a few stray points
WIDEST, WIDE_SHARE = 6.0, 0.4  # points: width of the true path, where the path fills at least that share of the map
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
    known. scale: metres per unit of the published depth, None if unknown. cloud: description of the cloud, for its title. bars: charts
    below the frames."""

    frames: list[Shown]
    start_ns: int
    points: F64
    colours: NDArray[np.float32]
    odom_from_camera: Mapping[int, F64]
    world_from_camera: Mapping[int, F64] = field(default_factory=dict)
    scale: float | None = None
    cloud: str = "published cloud"
    bars: Sequence[Bars] = ()


def overview_of(bag: str | Path, recording: Published, truth: Truth, topic: str | None = None) -> Overview:
    """The overview of a live run's recording. Needs at least one frame with depth."""
    known = sorted(truth.depth) or sorted(recording.depth)
    errors = {t: _error(recording.depth[t], truth.depth.get(t)) for t in known}
    stamps = [known[i] for i in chosen([errors[t] for t in known])]
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


def chosen(errors: Sequence[float]) -> list[int]:
    """Indices of the best, the median and the worst of frames with these errors; evenly spread ones where they are NaN, and all of fewer
    than ROWS."""
    order = np.argsort(errors)
    if len(order) <= ROWS or not np.isfinite(errors).all():
        return evenly(len(order))
    return [int(order[i]) for i in (0, len(order) // 2, len(order) - 1)]


def error_of(frame: Shown) -> float:
    """AbsRel of its depth, scaled to the truth; NaN without truth."""
    return _error(frame.depth, frame.real)


def _error(depth: F32, real: F32 | None) -> float:
    errors = _errors(depth, real)
    return float(np.nanmean(errors)) if errors is not None and np.isfinite(errors).any() else float("nan")


def _errors(depth: F32, real: F32 | None) -> F32 | None:
    """(h, w) relative errors of the depth, scaled to the truth; None without truth."""
    if real is None:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.abs(depth * _scale(depth, real) / real - 1), np.float32)


def wrapped(title: str, width: int) -> str:
    """`title` with its parts (between |) on as many lines as it takes to keep each below `width` characters; other lines break at
    spaces."""
    lines: list[str] = []
    for line in title.splitlines():
        parts = line.split(SEPARATOR)
        if len(parts) == 1:
            lines += _evenly_wrapped(line, width)
            continue
        lines.append(parts[0])
        for part in parts[1:]:
            longer = lines[-1] + SEPARATOR + part
            lines[-1:] = [longer] if len(longer) <= width else [lines[-1], part]
    return "\n".join(lines)


def _evenly_wrapped(line: str, width: int) -> list[str]:
    """On as few lines as it takes, and these about as long as each other: no word alone on the last one."""
    count = len(textwrap.wrap(line, width, break_long_words=False))
    for narrow in range(-(-len(line) // max(1, count)), width):
        found = textwrap.wrap(line, narrow, break_long_words=False)
        if len(found) <= count:
            return found
    return textwrap.wrap(line, width, break_long_words=False)


def draw(path: Path, overview: Overview, title: str) -> None:
    """Writes the picture as PNG. Needs at least one frame."""
    from .figures import pyplot

    plt, bars = pyplot(), overview.bars

    truth = any(frame.real is not None for frame in overview.frames)
    names = ["input", "depth", *(["true depth", "error"] if truth else []), "confidence"]
    if any(frame.overlay is not None for frame in overview.frames):
        names.append("merged: dark")
    figure = plt.figure(figsize=(7 + 3 * len(names), 8 + BARS_HEIGHT * bool(bars)), dpi=85, layout="constrained")
    above = figure
    if bars:
        above, below = figure.subfigures(2, 1, height_ratios=[8, BARS_HEIGHT])
        draw_bars(below.subplots(1, len(bars), squeeze=False)[0], bars)
    left, right = above.subfigures(1, 2, width_ratios=[0.4125 * len(names), 1])
    axes = left.subplots(len(overview.frames), len(names), squeeze=False)
    confidences = np.concatenate([frame.confidence.ravel() for frame in overview.frames])
    confidences = confidences[np.isfinite(confidences)]
    sure = np.percentile(confidences, [2, 98]) if len(confidences) else np.array([0.0, 1.0])
    errors = [error_of(frame) for frame in overview.frames]
    ranks = dict(zip(np.argsort(errors).tolist(), RANKS, strict=False)) if truth and len(errors) == ROWS else {}
    depths = np.concatenate(
        [(f.depth * _scale(f.depth, f.real) if f.real is None else f.real).ravel() for f in overview.frames]
    )
    depths = depths[np.isfinite(depths)]
    limits = np.percentile(depths, [2, 98]) if len(depths) else np.array([0.0, 1.0])
    for i, (row, frame) in enumerate(zip(axes, overview.frames, strict=True)):
        cells = dict(zip(names, row, strict=True))
        _draw_frame(left, cells, frame, sure, limits)
        row[0].set_ylabel(
            f"{ranks[i] + ', ' if i in ranks else ''}{(frame.stamp_ns - overview.start_ns) * 1e-9:.1f} s", fontsize=11
        )
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(f"{name}\n{axis.get_title()}" if axis.get_title() else f"{name}\n", fontsize=11)
    cloud, names_of_lines = right.subplots(2, 1, height_ratios=[1, 0.05])
    _draw_map(cloud, names_of_lines, overview)
    figure.suptitle(wrapped(title, int(9 * figure.get_figwidth())), fontsize=12)
    figure.savefig(path, format="png")
    plt.close(figure)


def _draw_frame(figure: Any, cells: Mapping[str, Any], frame: Shown, sure: NDArray[Any], limits: NDArray[Any]) -> None:
    """cells: the axes by their names. sure, limits: (2,) range of the colours of confidence and depth, the same for all rows."""
    real = frame.real
    scale = _scale(frame.depth, real)
    colours = {"cmap": "turbo_r", "vmin": limits[0], "vmax": limits[1], "interpolation": "nearest"}
    if frame.image is not None:
        cells["input"].imshow(frame.image)
        if frame.tracks is not None:
            landmark = np.zeros(len(frame.tracks), bool) if frame.known is None else frame.known
            for which, colour in ((~landmark, "#ffb000"), (landmark, "#40ff60")):
                cells["input"].plot(*frame.tracks[which].T, ".", color=colour, ms=1.5, mew=0)
            cells["input"].set_title(f"{len(landmark)} tracks, {int(landmark.sum())} landmarks (green)", fontsize=9)
            height, width = frame.image.shape[:2]
            cells["input"].set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    drawn = cells["depth"].imshow(frame.depth * scale, **colours)
    cells["depth"].set_title(
        f"scaled x{scale:.2f} to the truth" if real is not None else "in the model's unit", fontsize=9
    )
    deep = [cells["depth"]]
    if "true depth" in cells:
        deep.append(cells["true depth"])
        errors = _errors(frame.depth, real)
        if real is None or errors is None:
            for name in ("true depth", "error"):
                cells[name].text(0.5, 0.5, "not known", ha="center", va="center", transform=cells[name].transAxes)
                cells[name].set_box_aspect(frame.depth.shape[0] / frame.depth.shape[1])
        else:
            cells["true depth"].imshow(real, **colours)
            off = cells["error"].imshow(100 * errors, cmap="magma", vmin=0, vmax=MOST_ERROR, interpolation="nearest")
            cells["error"].set_title(f"mean {100 * _error(frame.depth, real):.0f} %", fontsize=9)
            figure.colorbar(off, ax=cells["error"], pad=0.02, label="percent of the distance")
    unit = "m" if real is not None else "model units"
    figure.colorbar(drawn, ax=deep, label=f"{unit}; red is near", pad=0.01)
    trust = cells["confidence"].imshow(
        frame.confidence, cmap="viridis", vmin=sure[0], vmax=sure[1], interpolation="nearest"
    )
    figure.colorbar(trust, ax=cells["confidence"], pad=0.02, label="yellow is sure")
    share = float(np.isfinite(frame.confidence).mean())
    cells["confidence"].set_title(f"{100 * share:.0f} % of the pixels published", fontsize=9)
    if frame.overlay is not None:
        cells["merged: dark"].imshow(frame.overlay, interpolation="nearest")
    for axis in cells.values():
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


def _draw_map(axis: Any, below: Any, overview: Overview) -> None:
    """The cloud and the path as published, seen obliquely: moved as one piece into the truth's world, if there is one. below: axes for
    the names of the lines, so that these cover nothing."""
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
    ways = np.stack([rotation @ odom[t][:3, 2] for t in sorted(odom)])
    right, up, ahead = _view(ways)
    order = np.argsort(-(xyz @ ahead))  # far things first
    seen = np.stack([right, up], axis=1)
    xyz = xyz @ seen
    size = float(np.clip(COVERED / max(1, len(xyz)), 2, 40))
    axis.scatter(*xyz[order, :2].T, c=colours[order], s=size, linewidths=0, rasterized=True)

    landmarks = [frame.landmarks for frame in overview.frames if frame.landmarks is not None]
    if landmarks:
        places = scale * np.concatenate(landmarks) @ rotation.T + translation
        places = places[places[:, 2] < cut] @ seen
        axis.plot(*places[:, :2].T, ".", color="#40ff60", ms=1.5, mew=0, alpha=0.7)

    paths = [(path, "#ff2a2a", "-", "estimated, scale of the cloud")]
    if known:
        real = np.stack([truth[t][:3, 3] for t in known])
        paths.insert(0, (real, "white", "-", "true path"))
        if len(known) > 2:
            ours = np.stack([odom[t][:3, 3] for t in known])
            s, r, t = geometry.umeyama(ours, real)
            paths.append((s * ours @ r.T + t, "#ffb000", "--", "estimated, scale fitted as scored"))
    paths = [(line @ seen, *how) for line, *how in paths]
    first = paths[0][0][:, :2]  # always in view: the true path, or ours if there is no other
    around = np.percentile(xyz[:, :2], SHOWN, axis=0) if len(xyz) else first
    (x0, y0), (x1, y1) = (
        np.minimum(around.min(axis=0), first.min(axis=0)),
        np.maximum(around.max(axis=0), first.max(axis=0)),
    )
    size = max(x1 - x0, y1 - y0, 1e-3)
    thin = float(np.clip(np.ptp(first, axis=0).max() / size / WIDE_SHARE, 0.25, 1))  # else a small path is a blot
    for line, colour, style, label in paths:
        wide = thin * (WIDEST if label == "true path" else 0.4 * WIDEST)  # visible under ours where they agree
        axis.plot(*line[:, :2].T, "-", color="black", lw=wide + 1.5 * thin, alpha=0.8)
        axis.plot(*line[:, :2].T, style, color=colour, lw=wide, label=label)
        axis.plot(*line[0, :2], "o", color=colour, mec="black", ms=4 + 4 * thin)
    margin = 0.1 * size
    axis.set(xlim=(x0 - margin, x1 + margin), ylim=(y0 - margin, y1 + margin), aspect="equal")
    unit = "m" if known else "model units"
    axis.set(xlabel=f"to the right, {unit}", ylabel=f"up and away, {unit}", facecolor="0.25")
    axis.set_title(f"{overview.cloud}, from behind and above, cut above the camera", fontsize=11)
    below.axis("off")
    handles = axis.get_legend_handles_labels()
    names = below.legend(*handles, loc="center", ncols=3, facecolor="0.6", fontsize=9, borderaxespad=0)
    for line in names.get_lines():
        line.set_linewidth(3)  # readable where the path itself is thin


def _view(ways: F64) -> tuple[F64, F64, F64]:
    """Axes (3,) to the right, up, and ahead of a view from behind a camera that looked along `ways` (N, 3), tilted down."""
    along = ways[:, :2].mean(axis=0)
    if np.linalg.norm(along) < 0.2:  # it looked everywhere
        along = ways[0, :2]
    size = float(np.linalg.norm(along))
    x, y = along / size if size > 1e-6 else (1.0, 0.0)
    cos, sin = np.cos(LOOKING_DOWN), np.sin(LOOKING_DOWN)
    return np.array([y, -x, 0.0]), np.array([x * sin, y * sin, cos]), np.array([x * cos, y * cos, -sin])


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
