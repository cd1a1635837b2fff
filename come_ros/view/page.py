"""The view as a folder that opens without a server and without the internet: viser's own export of a scene, with a replay, and next to it
the pictures of the keyframes and the cloud as a PLY."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ComeRosError, OutputError
from ..files import whole_folder, write_ply, write_text
from ..outputs.cloud import points_of
from ..progress import doing
from ..results import open_results
from . import PAGE_COLUMNS, PAGE_KEYFRAMES, PAGE_POINTS
from .content import MODES, Content, content_of
from .scene import (
    LANDMARK,
    LEVELS,
    LOOP,
    ODOMETRY,
    PATH,
    TRUTH,
    Timed,
    add_cameras,
    add_cloud,
    add_fixed,
    add_path,
    begin,
    import_viser,
    levels_of,
    point_size_of,
    steps_of,
    viser_server,
)  # fmt: skip

FOLDER, PAGE, POINTS, PICTURES, LICENCE = "view", "index.html", "points.ply", "pictures", "LICENSE-viser"
HOLD_S, REPLAY_S = 4.0, 12.0  # the whole scene, then the replay, over and over until it is paused
OVERLAY = Path(__file__).with_name("overlay.html")


def write_view(results: Path) -> str:
    """Writes the folder `view` into a folder of results, in place of an older one. Returns why there is nothing to show or no viser, in
    one line; "" if it is there. Raises OutputError if it cannot be written."""
    folder = results / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    try:
        import_viser()  # before what takes time
        write_page(content_of(open_results(results), PAGE_POINTS, PAGE_KEYFRAMES, PAGE_COLUMNS), folder)
    except OutputError:
        raise
    except ComeRosError as error:
        return str(error)
    return ""


def write_page(content: Content, folder: Path) -> None:
    """Writes the new folder `folder`, all or nothing. Raises ViewError without viser, OutputError if it cannot be written."""
    with doing(f"writing {folder.name}/"):
        _write(content, folder)


def _write(content: Content, folder: Path) -> None:
    html = _page(content)
    with whole_folder(folder) as part:
        write_text(part / PAGE, html)
        cloud = content.cloud
        write_ply(part / POINTS, points_of(cloud.places, cloud.colours, cloud.confidence), content.unit, content.world)
        write_text(part / LICENCE, _licence())
        (part / PICTURES).mkdir()
        for number, shown in enumerate(content.keyframes):
            (part / PICTURES / f"{number:03d}.jpg").write_bytes(shown.pictures)


def _licence() -> str:
    """Viser's, whose client is in the page."""
    import importlib.metadata

    files = importlib.metadata.files("viser") or []
    return next((file.read_text() for file in files if file.name == "LICENSE"), "viser: Apache-2.0")


def _page(content: Content) -> str:
    with viser_server("127.0.0.1", 0) as server:
        scene = server.scene
        begin(server, content)
        timed = _nodes(scene, content)
        recording = server.get_scene_serializer()
        recording.insert_sleep(HOLD_S)
        bounds = steps_of(content)
        for bound in bounds[:-1]:
            for nodes in timed:
                nodes.until(float(bound))
            recording.insert_sleep(REPLAY_S / (len(bounds) - 1))
        html = str(recording.as_html())
    overlay = OVERLAY.read_text(encoding="utf-8").replace("__ABOUT__", _json(_about(content)))
    end = html.rindex("</body>")
    return html[:end] + overlay + html[end:]


def _nodes(scene: Any, content: Content) -> list[Timed]:
    bounds, size = steps_of(content), point_size_of(content)
    timed = []
    modes = [mode for mode in MODES if mode == MODES[0] or _varies(content, mode)]
    for mode in modes:
        scene.add_frame(f"/cloud by {mode}", show_axes=False, visible=mode == MODES[0])
        parts = (
            zip(LEVELS, levels_of(content.cloud), strict=True)
            if _varies(content, "confidence")
            else [("all", content.cloud)]
        )
        for level, part in parts:
            timed.append(add_cloud(scene, f"/cloud by {mode}/{level}", part, mode, content, size, bounds))
    timed.append(add_path(scene, "/path in the map", content.path, PATH, bounds))
    timed.append(add_path(scene, "/path of odometry", content.odometry, ODOMETRY, bounds, 1.5))
    timed.append(add_path(scene, "/true path", content.truth, TRUTH, bounds))
    timed.append(add_cameras(scene, content.keyframes, content.size))
    add_fixed(scene, content)
    return timed


def _varies(content: Content, mode: str) -> bool:
    """Whether colours by that mode say anything."""
    values = {"confidence": content.cloud.confidence, "age": content.cloud.seen_s}.get(mode)
    return len(content.cloud) > 0 and (values is None or float(np.ptp(values)) > 0)


def legend_of(content: Content) -> list[tuple[str, str]]:
    """Name and colour of the lines and points that are there."""
    rows = [
        ("path in the map", PATH, content.path), ("path of odometry", ODOMETRY, content.odometry),
        ("true path, fitted", TRUTH, content.truth), ("loops", LOOP, content.loops if len(content.loops) else None),
        ("landmarks", LANDMARK, content.landmarks if len(content.landmarks) else None),
    ]  # fmt: skip
    return [(name, "rgb({}, {}, {})".format(*colour)) for name, colour, what in rows if what is not None]


def _about(content: Content) -> dict[str, Any]:
    count = len(content.cloud)
    left_out = f"{count:,} of {count + content.dropped:,} points are in this page" if content.dropped else ""
    facts = [content.facts, content.verdict, content.unit, left_out]
    return {
        "title": content.title,
        "facts": [fact for fact in facts if fact],
        "legend": legend_of(content),
        "ply": POINTS,
        "plyTitle": f"{count:,} points as a PLY",
        "points": count,
        "mouse": "Drag: turn. Right button: move. Wheel: nearer.",
        "help": _help(content),
        "keyframes": [
            (f"{PICTURES}/{i:03d}.jpg", k.words(i + 1, len(content.keyframes))) for i, k in enumerate(content.keyframes)
        ],
    }


def _help(content: Content) -> list[tuple[str, str]]:
    """Names and texts of what a reader of the page may ask."""
    return [
        (
            "Time",
            f"the bar at the bottom shows the whole scene for {HOLD_S:.0f} s, then replays the {content.duration_s:.1f} s of the "
            f"recording in {REPLAY_S:.0f} s, over and over. Its numbers are seconds of the replay. Space stops it; a click on the bar "
            "goes to that moment.",
        ),
        (
            "What is shown",
            "the button at the right end of the bar lists clouds by colour, confidence, height and age, each in thirds of confidence, "
            "cameras, paths and landmarks: click an eye to show or hide.",
        ),
        (
            "Cameras",
            "a click on one does nothing here, because no program answers. The slider below shows the pictures of each; a click on "
            "these opens them in full size. Of cameras that stand close together one is drawn.",
        ),
        ("More", "`come_ros view DIR` of the folder of results has clicks, filters and all points."),
    ]


def _json(value: Any) -> str:
    """For a script element: no text can end it."""
    return json.dumps(value).replace("<", "\\u003c")
