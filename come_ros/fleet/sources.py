"""Which recordings a fleet works on, the names of their results, and what identifies their content."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..datasets.readers import split_reader
from ..datasets.sequence import is_readable
from ..datasets.storage.folder import METADATA, ROS1_SUFFIXES
from ..datasets.storage.folder import SUFFIXES as ROS2_SUFFIXES
from ..errors import ConfigError, DatasetError
from ..files import fingerprint, shown, text_of_file

LISTS = (".txt", ".list")
"""suffixes of files that list recordings"""
BAGS = (*ROS2_SUFFIXES, *ROS1_SUFFIXES)


@dataclass(frozen=True)
class Source:
    """A recording as `come_ros bag` is given it. path: as on the command line, or in the list. options: of `come_ros bag`, for this
    recording only."""

    path: str
    options: tuple[str, ...] = ()

    @property
    def place(self) -> Path:
        """The path without a reader."""
        return Path(split_reader(self.path)[1])


def find_sources(words: Iterable[str]) -> list[Source]:
    """The recordings that `words` name, each once, in their order: patterns, lists, folders of recordings, recordings.

    Raises DatasetError if there are none where some are expected, ConfigError if one is named twice with different options.
    """
    found: dict[str, Source] = {}
    for word in words:
        for source in _named(word):
            key = os.path.realpath(source.place)
            if found.setdefault(key, source).options != source.options:
                raise ConfigError(
                    f"{shown(source.path)} is named twice, with the options {shlex.join(found[key].options) or 'none'} and "
                    f"{shlex.join(source.options) or 'none'}: name it once"
                )
    return list(found.values())


def _named(word: str) -> Iterator[Source]:
    path = Path(split_reader(word)[1])
    if not path.exists() and glob.has_magic(word):
        matches = sorted(glob.glob(word, recursive=True))
        if not matches:
            raise DatasetError(f"{shown(word)} matches nothing: check the pattern, and quote it for the shell")
        readable = [Source(match) for match in matches if is_readable(Path(match))]
        if not readable:
            raise DatasetError(f"{shown(word)} matches {len(matches)} paths, but no recording that can be read")
        yield from readable
    elif path.is_file() and path.suffix.lower() in LISTS:
        yield from _listed(path)
    elif path.is_dir() and not split_reader(word)[0] and (len(loose := _loose(path)) > 1 or not is_readable(path)):
        if len(loose) > 1:
            yield from (Source(str(Path(word, name))) for name in loose)
            return
        inside = [Source(str(Path(word, each.name))) for each in sorted(path.iterdir()) if is_readable(each)]
        if not inside:
            raise DatasetError(f"{shown(word)} holds no recording that can be read: give a folder of recordings")
        yield from inside
    else:  # what does not exist, or cannot be read, fails as its own task, and is reported there
        yield Source(word)


def _loose(folder: Path) -> list[str]:
    """Files in a folder that are bags of their own: of more than one name, besides the number that rosbag2 gives to parts of one."""
    if (folder / METADATA).is_file():
        return []
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name.endswith(BAGS))
    return names if len({re.sub(r"_\d+$", "", name.partition(".")[0]) for name in names}) > 1 else []


def without_results(sources: Sequence[Source], out: Path) -> list[Source]:
    """Those that do not lie in the folder of the results. Raises ConfigError if that lies in a recording, or if there are no others."""
    place = Path(os.path.realpath(out))
    kept = []
    for source in sources:
        real = Path(os.path.realpath(source.place))
        if real == place or real in place.parents:
            raise ConfigError(f"-o {shown(out)} lies in the recording {shown(source.path)}: choose another folder")
        if place not in real.parents:
            kept.append(source)
    if not kept:
        raise ConfigError(f"all recordings lie in {shown(out)}, the folder of the results: choose another one with -o")
    return kept


def _listed(path: Path) -> Iterator[Source]:
    """The lines of a list: a recording, then options of `come_ros bag` for it, quoted as in a shell. Relative paths start in the folder of
    the list. Raises DatasetError."""
    try:
        lines = text_of_file(path).splitlines()
    except OSError as error:
        raise DatasetError(f"the list {shown(path)} cannot be read: {error.strerror or error}") from error
    count = 0
    for number, line in enumerate(lines, start=1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise DatasetError(f"{shown(path)}, line {number}: {error}: quote paths as in a shell") from error
        if words:
            count += 1
            reader, place = split_reader(words[0])
            place = place if os.path.isabs(place) else os.path.join(path.parent, place)
            yield Source(f"{reader}::{place}" if reader else place, tuple(words[1:]))
    if not count:
        raise DatasetError(f"the list {shown(path)} names no recording: write one on each line")


def names_of(sources: Sequence[Source], known: Mapping[str, str], taken: Iterable[str] = ()) -> dict[Source, str]:
    """A name for the results of each source, of which no two are equal.

    known: real path of a recording -> the name that its results have already. taken: names that belong to something else.
    """
    used = {*known.values(), *taken}
    names: dict[Source, str] = {}
    for source in sources:
        before = known.get(os.path.realpath(source.place))
        names[source] = before or next(name for name in _proposals(source) if name not in used)
        used.add(names[source])
    return names


def _proposals(source: Source) -> Iterator[str]:
    place = Path(os.path.realpath(source.place))
    stem = (place.stem if place.is_file() else place.name) or "recording"
    stem = "".join(c if c.isalnum() or c in "-_.+" else "_" for c in stem).lstrip(".") or "recording"
    yield stem
    if place.parent.name:
        yield f"{place.parent.name.lstrip('.')}_{stem}"
    yield from (f"{stem}_{n}" for n in range(2, 1_000_000))


def files_of(place: Path) -> list[Path]:
    """All files of a recording, in a fixed order. Raises OSError."""
    if not place.is_dir():
        return [place]
    return sorted(Path(folder, name) for folder, _, names in os.walk(place) for name in names)


def state_of(place: Path) -> str:
    """Digest of names, sizes and times of all files: equal if nothing has been written since. Quick. Raises OSError."""
    digest = hashlib.sha256()
    for path in files_of(place):
        about = path.stat()
        digest.update(
            f"{os.path.relpath(path, place)}\0{about.st_size}\0{about.st_mtime_ns}\n".encode(errors="replace")
        )
    return digest.hexdigest()[:32]


def content_of(place: Path) -> str:
    """Digest of names and contents (see files.fingerprint), for files whose times have changed, as those of copies. Raises OSError."""
    digest = hashlib.sha256()
    for path in files_of(place):
        digest.update(f"{os.path.relpath(path, place)}\0{fingerprint(path)}\n".encode(errors="replace"))
    return digest.hexdigest()[:32]


def bytes_of(place: Path) -> int:
    """Size of all files; 0 if it cannot be read."""
    try:
        return sum(path.stat().st_size for path in files_of(place))
    except OSError:
        return 0
