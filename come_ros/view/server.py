"""The served view: viser's scene with controls, of results that are complete or of a node that goes on."""

from __future__ import annotations

import io
import itertools
import math
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import ply_bytes
from ..outputs.cloud import points_of
from ..types import U8
from .content import MODES, Cloud, Content, Limits, Path, limits_of, painted_cloud
from .detail import STILL_S, Detail, shares_of
from .keyframes import Shown, frusta_of
from .scene import (
    CAMERA,
    CHOSEN,
    LANDMARK,
    LOOP,
    ODOMETRY,
    PATH,
    TRUTH,
    add_camera,
    add_fixed,
    add_line,
    add_points,
    begin,
    point_size_of,
    steps_of,
)

PICTURE_S = 30.0  # a browser that has not drawn the screenshot until then does not


@dataclass(frozen=True, eq=False)
class Batch:
    """Points that appear together at `time_s`, as one node of the scene. level: of detail, see Detail."""

    name: str
    time_s: float
    cloud: Cloud
    level: int = 0


@dataclass(frozen=True)
class Wish:
    """What the controls ask of the cloud. mode: one of content.MODES. size: of a point. least: confidence below which points are hidden.
    farthest: range beyond which they are. share: of the points that are drawn."""

    mode: str = MODES[0]
    size: float = 0.01
    least: float = -math.inf
    farthest: float = math.inf
    share: float = 1.0


class Viewer:
    """Draws a scene and follows its controls. Its methods may be called by any thread. `close` ends its own thread.

    What takes long, sending the points again, is done in that thread, for the latest wish only.
    """

    def __init__(self, server: Any, content: Content, live: bool = False) -> None:
        self.server, self.content, self.live = server, content, live
        self._lock = threading.RLock()
        self._wish = Wish(size=point_size_of(content))
        self._detail = Detail(0 if live else len(content.cloud))
        self._now_s = math.inf
        self._batches: dict[str, Batch] = {}
        self._drawn: dict[str, tuple[Any, Wish, Batch]] = {}  # nodes, by which wish, and of what they were drawn
        self._limits: Limits = limits_of(content.cloud, content.up)
        self._cameras: list[tuple[Shown, Any]] = []
        self._lines: dict[str, tuple[Path, Any]] = {}
        self._frusta: set[int] = set()  # numbers of the cameras that are drawn
        self._chosen: int | None = None
        self._window = 0
        self._stop, self._changed = threading.Event(), threading.Event()
        begin(server, content)
        server.gui.configure_theme(control_width="large", show_logo=False, show_share_button=False)
        server.gui.set_panel_label("come_ros view")
        self._controls()
        self._fixed: dict[str, Any] = {}
        self.show(content)
        if not live:
            self.add_batches(batches_of(content))
            server.on_client_connect(
                lambda client: client.camera.on_update(lambda camera: self._turned(client.client_id))
            )
        self._thread = threading.Thread(target=self._work, name="view", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._changed.set()
        self._thread.join()

    @property
    def points(self) -> int:
        """How many are kept, shown or not."""
        with self._lock:
            return sum(len(batch.cloud) for batch in self._batches.values())

    @property
    def settled(self) -> bool:
        """Whether all points are drawn as the controls ask."""
        with self._lock:
            return self._drawn.keys() == self._batches.keys() and self._next() is None

    @property
    def cloud_nodes(self) -> list[Any]:
        """The nodes of the points."""
        with self._lock:
            return [node for node, *_ in self._drawn.values()]

    @property
    def camera_nodes(self) -> list[Any]:
        """The frusta, oldest first."""
        with self._lock:
            return [node for _, node in self._cameras]

    @property
    def chosen(self) -> int | None:
        """Number of the camera that was clicked, None without one."""
        return self._chosen

    # What is shown

    def show(self, content: Content) -> None:
        """Paths, cameras, landmarks and loops of `content`; batches of points are given by `add_batches`."""
        with self._lock, self.server.atomic():
            self.content = content
            self._about.content = about_of(content)
            for name, path, colour, width in (
                ("path in the map", content.path, PATH, 3.0),
                ("path of odometry", content.odometry, ODOMETRY, 1.5),
                ("true path", content.truth, TRUTH, 3.0),
            ):
                self._show_line(name, path, colour, width)
            for number, shown in enumerate(content.keyframes):
                if number >= len(self._cameras) or self._cameras[number][0] is not shown:
                    self._show_camera(number, shown)
            while len(self._cameras) > len(content.keyframes):
                self._cameras.pop()[1].remove()
            self._frusta = set(frusta_of(content.keyframes, content.size))
            self._checks["all cameras"].visible = len(self._frusta) < len(self._cameras)
            self._number.max = max(1, len(self._cameras))
            self._show_fixed(content)
            self._apply_time()

    def add_batches(self, batches: list[Batch], gone: tuple[str, ...] = ()) -> None:
        """New points; `gone`: names of batches that they replace."""
        with self._lock:
            for name in gone:
                self._batches.pop(name, None)
            self._batches.update({batch.name: batch for batch in batches})
            self._limits = limits_of(joined([b.cloud for b in self._batches.values()], 200_000), self.content.up)
        self._changed.set()

    def mark_window(self, count: int) -> None:
        """The newest `count` cameras are those of the window in work: they are drawn in another colour."""
        with self._lock:
            self._window = count
            self._colour_cameras()
            self._apply_time()

    # Drawing

    def _work(self) -> None:
        while not self._stop.is_set():
            self._changed.wait(STILL_S / 2 if self._detail.turning else 1.0)
            self._changed.clear()
            self._rested()
            while not self._stop.is_set() and self._draw_one():
                self._rested()

    def _turned(self, browser: int) -> None:
        """A browser reports where its camera is: the points of higher levels are hidden until it rests."""
        with self._lock, self.server.atomic():
            if self._detail.reported(browser, time.monotonic()):
                self._apply_time()
        self._changed.set()

    def _rested(self) -> None:
        with self._lock, self.server.atomic():
            if self._detail.rested(time.monotonic()):
                self._apply_time()

    def _how_many(self) -> str:
        """Words on the levels of detail, where there are some."""
        total = len(self.content.cloud)
        if self.live or self._detail.points >= total:
            return ""
        why = (
            "while it is turned"
            if self._detail.turning
            else "until it is turned, or about what this browser draws in half a second"
        )
        return f"{self._detail.points:,} of {total:,} points, {why}"

    def _is_visible(self, batch: Batch) -> bool:
        return self._show_cloud.value and batch.time_s <= self._now_s and batch.level <= self._detail.level

    def _draw_one(self) -> bool:
        """Draws one batch that is not as it should be, or removes one. False if there is none."""
        with self._lock:
            wish = self._wish
            for name in [name for name in self._drawn if name not in self._batches]:
                self._drawn.pop(name)[0].remove()
            todo = self._next()
            limits, up = self._limits, self.content.up
        if todo is None:
            return False
        rows = rows_of(todo.cloud, wish)
        cloud = todo.cloud.at(rows)
        colours = painted_cloud(cloud, wish.mode, up, limits)
        with self._lock:
            if self._batches.get(todo.name) is todo:
                node = add_points(self.server.scene, f"/cloud/{todo.name}", cloud.places, colours, wish.size)
                node.visible = self._is_visible(todo)
                self._drawn[todo.name] = node, wish, todo
        return True

    def _next(self) -> Batch | None:
        """A batch that is not drawn as the controls ask."""
        for name, batch in self._batches.items():
            if name not in self._drawn or self._drawn[name][1] != self._wish or self._drawn[name][2] is not batch:
                return batch
        return None

    def _show_line(self, name: str, path: Path | None, colour: tuple[int, int, int], width: float) -> None:
        before = self._lines.get(name)
        if path is None or len(path.places) < 2:
            if before is not None:
                self._lines.pop(name)[1].remove()
        elif before is None or before[0] is not path:
            node = add_line(self.server.scene, f"/{name}", path.places, colour, width)
            node.visible = self._checks[name].value
            self._lines[name] = path, node
            self._checks[name].visible = True

    def _show_camera(self, number: int, shown: Shown) -> None:
        node = add_camera(self.server.scene, f"/cameras/{number:03d}", shown, self.content.size)
        node.on_click(lambda event, number=number: self._choose(number))
        if number < len(self._cameras):
            self._cameras[number] = shown, node
        else:
            self._cameras.append((shown, node))

    def _show_fixed(self, content: Content) -> None:
        if not self._fixed:
            self._fixed = add_fixed(self.server.scene, content)
        for name in self._fixed:
            self._checks[name].visible = True

    def _apply_time(self) -> None:
        """Shows what was there at the moment of the slider."""
        now = self._now_s
        self._many.content = self._how_many()
        for name, (node, *_) in self._drawn.items():
            _set_visible(node, name in self._batches and self._is_visible(self._batches[name]))
        for number, (shown, node) in enumerate(self._cameras):
            wanted = self._checks["all cameras"].value or number in self._frusta or self._stands_out(number)
            _set_visible(node, self._checks["cameras"].value and wanted and shown.time_s <= now)
        for name, (path, node) in self._lines.items():
            count = max(2, int(np.searchsorted(path.times_s, now, side="right")))
            places = path.places[:count]
            if len(node.points) != len(places) - 1:
                node.points = np.stack([places[:-1], places[1:]], axis=1).astype(np.float32)
            _set_visible(node, self._checks[name].value)
        for name, node in self._fixed.items():
            _set_visible(node, self._checks[name].value)

    def _colour_cameras(self) -> None:
        for number, (_, node) in enumerate(self._cameras):
            colour = CHOSEN if self._stands_out(number) else CAMERA
            if tuple(node.color) != colour:
                node.color = colour

    def _stands_out(self, number: int) -> bool:
        """Whether that camera is the chosen one, or one of the window in work."""
        return number == self._chosen or number >= len(self._cameras) - self._window

    # Controls

    def _controls(self) -> None:
        gui = self.server.gui
        self._about = gui.add_markdown(about_of(self.content))
        last = max(self.content.duration_s, 0.1)
        with gui.add_folder("Replay", visible=not self.live):
            self._time = gui.add_slider("time, s", 0.0, last, last / 1000, last)
            self._play = gui.add_button("Play")
        with gui.add_folder("Cloud"):
            self._many = gui.add_markdown("")
            mode = gui.add_dropdown("colour by", MODES, initial_value=MODES[0])
            size = gui.add_slider("point size", 0.25, 4.0, 0.05, 1.0, hint="times the distance between points")
            sure = gui.add_slider("hide least sure, %", 0, 95, 1, 0, hint="by confidence")
            reach = gui.add_slider(
                "seen within, %", 2, 100, 1, 100, hint="of the largest distance from which points were seen"
            )
            share = gui.add_slider(
                "share drawn, %",
                5,
                100,
                5,
                100,
                hint="fewer points for slow machines and networks",
            )
        with gui.add_folder("Show"):
            self._show_cloud = gui.add_checkbox("cloud", True)
            names = ("cameras", "all cameras", "path in the map", "path of odometry", "true path", "loops", "landmarks")
            self._checks = {
                name: gui.add_checkbox(name, name != "all cameras", visible=name == "cameras") for name in names
            }
        with gui.add_folder("Keyframe"):
            self._words = gui.add_markdown(
                "Click a camera, or move the slider: its image, depth and so on appear here."
            )
            self._number = gui.add_slider("keyframe", 1, max(1, len(self.content.keyframes)), 1, 1)
            self._picture = gui.add_image(np.zeros((2, 2, 3), np.uint8), visible=False)
            look = gui.add_button("Look through it", visible=False)
        self._look = look
        shot, ply = gui.add_button("Screenshot"), gui.add_button("Save PLY")
        base = self._wish.size

        def wished(event: Any) -> None:
            with self._lock:
                everything = joined([b.cloud for b in self._batches.values()], 200_000)
                least = (
                    float(np.quantile(everything.confidence, sure.value / 100))
                    if sure.value and len(everything)
                    else -math.inf
                )
                known = everything.range[np.isfinite(everything.range)]
                far = (
                    float(np.quantile(known, 0.99)) * reach.value / 100
                    if reach.value < 100 and len(known)
                    else math.inf
                )
                self._wish = Wish(mode.value, base * size.value, least, far, share.value / 100)
            self._changed.set()

        for control in (mode, sure, reach, share):
            control.on_update(wished)

        def resized(event: Any) -> None:
            with self._lock:
                self._wish = replace(self._wish, size=base * size.value)
                for name, (node, wish, batch) in list(self._drawn.items()):  # without sending the points again
                    node.point_size = self._wish.size
                    self._drawn[name] = node, replace(wish, size=self._wish.size), batch

        def timed(event: Any) -> None:
            self._now_s = math.inf if self._time.value >= last else float(self._time.value)
            with self._lock, self.server.atomic():
                self._apply_time()

        def checked(event: Any) -> None:
            with self._lock, self.server.atomic():
                self._apply_time()

        def numbered(event: Any) -> None:
            if self._number.value - 1 != self._chosen:
                self._choose(self._number.value - 1)

        for check in (self._show_cloud, *self._checks.values()):
            check.on_update(checked)
        size.on_update(resized)
        self._time.on_update(timed)
        self._play.on_click(lambda event: self._replay(last))
        self._number.on_update(numbered)
        shot.on_click(self._screenshot)
        ply.on_click(self._save_ply)
        look.on_click(self._look_through)

    def _replay(self, last: float) -> None:
        """From the start to the end in some 15 s, until the slider is moved."""
        count = 60
        for number in range(count + 1):
            value = last * number / count
            self._time.value = value
            self._now_s = math.inf if number == count else value
            with self._lock, self.server.atomic():
                self._apply_time()
            if self._stop.wait(0.25) or abs(self._time.value - value) > 1e-6 * last:
                return

    def _choose(self, number: int) -> None:
        with self._lock:
            if number >= len(self._cameras):
                return
            self._chosen = number
            self._colour_cameras()
            self._apply_time()
            shown, count = self._cameras[number][0], len(self._cameras)
        self._words.content = shown.words(number + 1, count)
        self._picture.image = decoded(shown.pictures)
        self._picture.visible = self._look.visible = True
        if self._number.value != number + 1:
            self._number.value = number + 1

    def _look_through(self, event: Any) -> None:
        with self._lock:
            shown = None if self._chosen is None else self._cameras[self._chosen][0]
        if shown is not None and event.client is not None:
            camera = event.client.camera
            with event.client.atomic():
                camera.up_direction = -shown.pose[:3, 1]
                camera.position = shown.pose[:3, 3]
                camera.look_at = shown.pose[:3, 3] + shown.pose[:3, 2] * self.content.size * 0.3
                camera.fov = shown.fov

    def _screenshot(self, event: Any) -> None:
        from PIL import Image

        if (client := event.client) is None:
            return
        try:
            picture = client.get_render(client.camera.image_height, client.camera.image_width, timeout=PICTURE_S)
        except TimeoutError:
            client.add_notification("No screenshot", f"The browser did not draw it within {PICTURE_S:.0f} s.")
            return
        out = io.BytesIO()
        Image.fromarray(picture).save(out, "PNG")
        client.send_file_download(f"{self.content.title}.png", out.getvalue(), save_immediately=True)

    def _save_ply(self, event: Any) -> None:
        if event.client is None:
            return
        with self._lock:
            cloud, wish = joined([b.cloud for b in self._batches.values()]), self._wish
        shown = cloud.at(rows_of(cloud, replace(wish, share=1.0)))
        data = ply_bytes(
            points_of(shown.places, shown.colours, shown.confidence), self.content.unit, self.content.world
        )
        event.client.send_file_download(f"{self.content.title}.ply", data, save_immediately=True)


def batches_of(content: Content) -> list[Batch]:
    """The cloud in levels of detail, the coarsest first, and each in the steps of the replay, in an order that is random, so that a level,
    or a share of one, is spread evenly."""
    bounds, cloud = steps_of(content), content.cloud
    step = np.clip(np.searchsorted(bounds, cloud.seen_s, side="right") - 1, 0, len(bounds) - 2)
    order = np.random.default_rng(0).permutation(len(cloud))
    ends = np.rint(shares_of(len(cloud)) * len(cloud)).astype(int)
    out = []
    for level, (start, end) in enumerate(itertools.pairwise(ends.tolist())):
        some = order[start:end]
        for number in np.unique(step[some]):
            rows = some[step[some] == number]
            out.append(Batch(f"{level}/{number:02d}", float(bounds[number]), cloud.at(rows), level))
    return out


def rows_of(cloud: Cloud, wish: Wish) -> NDArray[np.intp]:
    """The points that a wish asks for: of the first ones, see batches_of, those that are sure and near enough."""
    some = slice(0, round(wish.share * len(cloud)))
    with np.errstate(invalid="ignore"):
        good = (cloud.confidence[some] >= wish.least) & ~(cloud.range[some] > wish.farthest)
    return np.flatnonzero(good)


def joined(clouds: list[Cloud], most: int | None = None) -> Cloud:
    """All in one; with `most`, about as many, evenly taken."""
    total = sum(map(len, clouds))
    step = 1 if most is None else max(1, total // most)
    parts = [c.at(slice(None, None, step)) for c in clouds] or [Cloud.none()]
    return Cloud(*(np.concatenate(column) for column in zip(*(p.columns() for p in parts), strict=True)))


def about_of(content: Content) -> str:
    """Markdown above the controls."""

    def key(name: str, colour: tuple[int, int, int]) -> str:
        return f'<span style="color:rgb{colour}">&#9632;</span> {name}'

    lines = [f"**{content.title}**", content.facts, content.verdict, content.unit]
    if content.dropped:
        total = len(content.cloud) + content.dropped
        lines.append(f"{len(content.cloud):,} of {total:,} points are shown: --max-points changes that")
    there = [
        ("path in the map", PATH, content.path), ("odometry", ODOMETRY, content.odometry), ("true path, fitted", TRUTH, content.truth),
        ("loops", LOOP, content.loops if len(content.loops) else None),
        ("landmarks", LANDMARK, content.landmarks if len(content.landmarks) else None),
    ]  # fmt: skip
    lines.append(" ".join(key(name, colour) for name, colour, what in there if what is not None))
    return "\n\n".join(filter(None, lines))


def decoded(jpeg: bytes) -> U8:
    """(H, W, 3) RGB."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def _set_visible(node: Any, value: bool) -> None:
    if node.visible != value:
        node.visible = value
