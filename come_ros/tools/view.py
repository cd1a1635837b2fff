"""Shows results in 3D in the browser: the cloud, the paths, every camera with its pictures, the loops, and a replay of the recording.

DIR is the output folder of `come_ros bag` or `come_ros demo`, a folder that ~/save_map wrote, or a recording of the node's topics. --live
shows a running node instead. The page is served on this machine only, unless --host says otherwise, and asks nothing of the internet.
Colour by colour, confidence, height or age; hide points that are not sure, or were seen from afar; move the time slider; click a camera
to see its image, depth and confidence. --save writes the same scene as a folder that opens without a server, as `come_ros bag` does.

examples:
  come_ros view out                          what `come_ros bag -o out` made
  come_ros view out --open                   and opens the browser
  come_ros view out --port 9000 --host 0.0.0.0   for other machines of the network: anybody there can look
  come_ros view ~/.ros/come_ros/map_1        a saved map
  come_ros view out --save page              page/index.html: opens without a server, so it can be sent
  come_ros view --live                       the running node /come
  come_ros view --live --node /robot/come
"""

from __future__ import annotations

import argparse
import functools
import time
import webbrowser
from pathlib import Path

from ..errors import ConfigError
from ..files import shown
from ..interrupts import Interrupts
from ..view import COLUMNS, LIVE_POINTS, MOST_KEYFRAMES, MOST_POINTS, PAGE_COLUMNS, PAGE_KEYFRAMES, PAGE_POINTS
from .result import print_result

HOST, PORT = "127.0.0.1", 8080
POLL_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results", nargs="?", metavar="DIR", help="folder of results, saved map, or recording of the node"
    )
    parser.add_argument("--live", action="store_true", help="show a running node instead")
    parser.add_argument("--node", default="/come", metavar="NAME", help="full name of the node (default: %(default)s)")
    parser.add_argument("--host", default=HOST, help="address to serve at (default: %(default)s, this machine only)")
    parser.add_argument("--port", type=int, default=PORT, help="0: any free one (default: %(default)s)")
    parser.add_argument("--open", action="store_true", help="open the page in the default browser")
    parser.add_argument(
        "--max-points", type=int, metavar="N",
        help=f"show at most that many (default: {MOST_POINTS}; {LIVE_POINTS} with --live, {PAGE_POINTS} with --save)",
    )  # fmt: skip
    parser.add_argument(
        "--max-keyframes", type=int, metavar="N",
        help=f"show at most that many cameras with their pictures (default: {MOST_KEYFRAMES}; {PAGE_KEYFRAMES} with --save)",
    )  # fmt: skip
    parser.add_argument(
        "--save", metavar="FOLDER", help="write a page that needs no server into this new folder, and end"
    )


def run(options: argparse.Namespace) -> int:
    """Serves until Ctrl-C. Raises ComeRosError."""
    if options.live == (options.results is not None):
        raise ConfigError(
            "give either the folder of results to show, or --live for a running node"
            + (f", not both ({shown(options.results)})" if options.live else "")
        )
    for name, least in (("max_points", 1000), ("max_keyframes", 0)):
        if (given := getattr(options, name)) is not None and given < least:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(options, name)}, but must be {least} or more")
    if not 0 <= options.port <= 65535:
        raise ConfigError(f"--port is {options.port}, but must lie in 0 .. 65535")
    if options.live:
        if options.save:
            raise ConfigError("--save has no effect on --live: record the node, or run `come_ros bag`, and save that")
        from ..ros.programs.viewer import view_live

        return view_live(options, functools.partial(announce, options))
    from ..results import open_results
    from ..view.content import content_of
    from ..view.scene import import_viser

    import_viser()  # before what takes time
    *defaults, columns = (
        (PAGE_POINTS, PAGE_KEYFRAMES, PAGE_COLUMNS) if options.save else (MOST_POINTS, MOST_KEYFRAMES, COLUMNS)
    )
    points, keyframes = (
        default if given is None else given
        for given, default in zip((options.max_points, options.max_keyframes), defaults, strict=True)
    )
    content = content_of(open_results(options.results, options.node), points, keyframes, columns)
    if options.save:
        from ..view.page import PAGE, write_page

        write_page(content, Path(options.save))
        page = Path(options.save) / PAGE
        print_result(options, {"title": content.title, "page": str(page)}, f"{shown(page)}: open it in a browser")
        return 0
    from ..view.scene import viser_server
    from ..view.server import Viewer

    with Interrupts() as stopped, viser_server(options.host, options.port) as server:
        viewer = Viewer(server, content)
        try:
            announce(options, options.host, server.get_port(), content.title, options.open)
            while not stopped():
                time.sleep(POLL_S)
        finally:
            viewer.close()
    return 0


def announce(options: argparse.Namespace, host: str, port: int, title: str, open_it: bool) -> None:
    """Prints where the page is, and opens it."""
    everywhere = host in ("0.0.0.0", "::", "")
    at = "127.0.0.1" if everywhere else f"[{host}]" if ":" in host else host
    url = f"http://{at}:{port}"
    words = f", and at the addresses of this machine on port {port}" if everywhere else ""
    print_result(options, {"title": title, "url": url}, f"{title}: {url}{words} (Ctrl-C ends it)")
    if open_it:
        webbrowser.open(url)
