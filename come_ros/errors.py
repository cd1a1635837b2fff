"""The exceptions of come_ros: each message names the value, what is allowed, and the fix."""

import signal


class ComeRosError(Exception):
    """Base of every error that a user can cause and fix; tools print it as one line, without a traceback."""


class ConfigError(ComeRosError, ValueError):
    """A parameter is unknown, of the wrong type or out of range."""


class CheckpointError(ComeRosError):
    """A weights file is missing, unreadable, or does not hold what the model needs."""


class FrameError(ComeRosError, ValueError):
    """One image or its CameraInfo cannot be used; the frame is dropped and counted, the run goes on."""


class DatasetError(ComeRosError):
    """A recording (bag, folder, sequence) is missing or damaged."""


class NodeError(ComeRosError):
    """A ROS node that a command needs is not there."""


class PluginError(ComeRosError):
    """A class of another package does not do what its interface promises."""


class Cancelled(ComeRosError):
    """Reconstruction of a window was cancelled; there is no result."""


class Stopped(BaseException):
    """A signal ended a command; number: which one. kept: what there is of the work, and how to go on; empty if there is nothing.

    Not an Exception, as KeyboardInterrupt is not one either: it may be raised anywhere, and code that handles the failures of others
    must not handle it, too.
    """

    def __init__(self, number: int, kept: str = "") -> None:
        by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"stopped by {by}; {kept}" if kept else f"stopped by {by}")
        self.number, self.kept = number, kept


class OutOfMemory(ComeRosError):
    """A window does not fit into the memory of its device; a smaller one may."""


class DeviceLost(ComeRosError):
    """The GPU raised an error after which this process can no longer use it: restart the process."""


class OutputError(ComeRosError):
    """A result cannot be written: no such folder, no permission, or no space left."""


class MapError(ComeRosError):
    """A saved map is missing, damaged, of a newer version, or of another model."""
