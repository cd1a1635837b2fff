"""Environment variables of DDS: the large-message profile, and isolation for tests and demos. Imports no ROS."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path

PROFILE = "fastdds_large_messages.xml"
SHARED_MEMORY = Path("/dev/shm")
SEGMENTS = ("fastdds_", "fastrtps_")  # prefixes of the names of shared memory: Fast DDS 3, Fast DDS 2 (Humble to Jazzy)
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")  # Fast DDS 3, Fast DDS 2


def config_file(name: str) -> Path | None:
    """Path of a file in config/, installed (<prefix>/share/come_ros/config) or in a checkout; None if it does not exist."""
    here = Path(__file__)
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    folders = [here.resolve().parents[2] / "config"]
    folders += [p / "share" / "come_ros" / "config" for p in (*here.parents, *prefixes)]
    return next((f / name for f in folders if (f / name).is_file()), None)


def profile_variable() -> str:
    """Name of the variable that the Fast DDS of this ROS reads: version 2 (Humble to Jazzy) only supports the older one."""
    distro = os.environ.get("ROS_DISTRO", "")
    if distro:
        return PROFILE_VARIABLES[distro in ("humble", "iron", "jazzy")]
    from importlib.metadata import PackageNotFoundError, version

    try:  # the pip wheels set no ROS_DISTRO; rclpy 9 is Kilted, the first with Fast DDS 3
        return PROFILE_VARIABLES[int(version("ros-rclpy").split(".")[0]) < 9]
    except (PackageNotFoundError, ValueError):
        return PROFILE_VARIABLES[0]


def large_message_profile(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variable to set so that images and clouds pass through shared memory; empty if the user has a profile, or none is found."""
    path = config_file(PROFILE)
    if path is None or any(environment.get(name) for name in PROFILE_VARIABLES):
        return {}
    return {profile_variable(): str(path)}


def use_large_message_profile(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets the profile for this process and its children. Only works before the first `rclpy.init()`."""
    for name, path in large_message_profile(environment).items():
        environment.setdefault(name, path)


def shared_memory(semaphores: bool = False) -> set[Path]:
    """Files of Fast DDS in shared memory, of all processes on this machine: segments and their locks (_el)."""
    heads = [*SEGMENTS, *(f"sem.{head}" for head in SEGMENTS if semaphores)]
    return {path for head in heads for path in SHARED_MEMORY.glob(f"{head}*")}


def free_domain_id() -> int:
    """A random DDS domain (1..100) that no participant on this machine uses at the moment. It is reserved for this process until it
    ends."""
    import fcntl

    for domain_id in random.SystemRandom().sample(range(1, 101), 100):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            lock = stack.enter_context(open(f"{tempfile.gettempdir()}/come_ros_domain_{domain_id}.lock", "a"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.bind(
                    ("", 7400 + 250 * domain_id)
                )  # the discovery port of the domain, which every participant binds
            _held.append(stack.pop_all())
            return domain_id
    return random.SystemRandom().randint(1, 100)


_held: list[contextlib.ExitStack] = []  # locks of reserved domains, released at the end of the process


def isolated_dds_environment(
    domain_id: int | None = None, log_dir: str | os.PathLike[str] | None = None
) -> dict[str, str]:
    """A copy of the environment in which ROS communicates on this machine only, in a separate domain, with the large-message profile.

    log_dir: folder of ROS log files; None leaves the one set, else a `come_ros_log` under the temporary folder.
    """
    environment = dict(os.environ)
    environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    if (
        environment.get("ROS_DISTRO") == "humble"
    ):  # Humble has no discovery range; newer distributions warn about this variable
        environment["ROS_LOCALHOST_ONLY"] = "1"
    environment["ROS_DOMAIN_ID"] = str(free_domain_id() if domain_id is None else domain_id)
    if log_dir is not None:
        environment["ROS_LOG_DIR"] = os.fspath(log_dir)
    else:
        environment.setdefault("ROS_LOG_DIR", os.path.join(tempfile.gettempdir(), "come_ros_log"))
    use_large_message_profile(environment)
    return environment
