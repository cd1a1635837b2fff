"""The files of ROS recordings: MCAP, SQLite and ROS 1 bags, each recognised by its content; whole or damaged.

Only topics, types and bytes are read here: no message definition is parsed, so an unrelated topic cannot spoil a recording.
"""

from .folder import Recording, is_recording, open_recording
from .parts import Channel, StorageError

__all__ = ["Channel", "Recording", "StorageError", "is_recording", "open_recording"]
