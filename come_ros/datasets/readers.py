"""Readers of other packages: given as READER::PATH, where READER is NAME or module:Class, or because they accept what they are shown.

A reader is a subclass of sequence.Recording with `accepts(path) -> bool` as a class method; it is made with the path, and with its
`Parameters`, if it declares any, as a second argument: READER:name=value,...::PATH.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..config_text import own_parameters, split_name
from ..errors import ComeRosError, ConfigError, DatasetError
from ..files import shown
from ..plugins import READERS, one_line

log = logging.getLogger("come_ros")

MARK = "::"


def split_reader(source: str) -> tuple[str, str]:
    """READER::PATH -> READER, PATH; the reader is "" where none is named."""
    reader, mark, path = source.partition(MARK)
    return (reader, path) if mark else ("", source)


def accepting(path: Path) -> str:
    """Name of the first registered reader that accepts `path`, "" if none does. One that cannot be asked is left out, which is logged."""
    for name in READERS.others:
        try:
            if READERS.load(name).accepts(path):
                return name
        except ConfigError as error:
            log.warning("%s", error)
        except Exception as error:
            log.warning("the dataset reader %s cannot be asked about %s: %s", name, shown(path), one_line(error))
    return ""


def make_reader(reader: str, path: Path) -> Any:
    """The Recording that READER makes of `path`. Raises ConfigError if there is no such reader or parameter, DatasetError if it fails."""
    name, words = split_name(reader)
    kind, own = READERS.load(name), own_parameters(READERS, name, words)
    try:
        return kind(path) if own is None else kind(path, own)
    except ComeRosError:
        raise
    except Exception as error:
        raise DatasetError(f"the dataset reader {name} cannot open {shown(path)}: {one_line(error)}") from error
