"""The ledger of a fleet: in each folder of results one file that says what they were made from, so that they are made once."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..companions import COMPANIONS
from ..errors import DatasetError
from ..files import fingerprint, shown, write_text
from .sources import Source, content_of, state_of

RECORD = "fleet.json"
FORMAT, VERSION = "come_ros fleet result", 1
DONE, PARTIAL = "done", "partial"
MODELS = Path(__file__).resolve().parents[1] / "models"


@dataclass(frozen=True)
class Inputs:
    """All that a result depends on. come_ros: version. source: as given to `come_ros bag`; place: its real path. state, content: see
    sources.py; "" where not known. parameters: all, by name. options: of `come_ros bag`. files: path -> fingerprint of weights, and of
    files that options name."""

    come_ros: str
    source: str
    place: str = ""
    state: str = ""
    content: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of everything but the source."""
        about = (self.come_ros, sorted(self.parameters.items()), self.options, sorted(self.files.items()))
        return hashlib.sha256(repr(about).encode(errors="replace")).hexdigest()[:12]

    def changes(self, now: Inputs, content: Callable[[], str]) -> list[str]:
        """What differs between these, which a result was made from, and those of now, in words; empty if nothing does. content: of the
        source now, read only if its files were written since."""
        told = []
        for name in ("come_ros", "place"):
            before, after = getattr(self, name), getattr(now, name)
            if before != after:
                told.append(f"{name} {shown(before)} -> {shown(after)}")
        if self.state != now.state and self.content != content():
            told.append("the recording's files")
        for name in sorted({*self.parameters, *now.parameters}):
            a, b = self.parameters.get(name), now.parameters.get(name)
            if a != b:
                told.append(f"{name} {a!r} -> {b!r}")
        if self.options != now.options:
            told.append(f"options {' '.join(self.options) or 'none'} -> {' '.join(now.options) or 'none'}")
        for name in sorted({*self.files, *now.files}):
            if self.files.get(name) != now.files.get(name):
                told.append(f"the file {shown(name)}")
        return told


@dataclass(frozen=True)
class Record:
    """state: DONE, or PARTIAL where the recording is damaged and `come_ros bag` made what it could of the rest; reason: its message then.
    seconds: of the last attempt, without waiting. attempts: how many there were. node: where it ran. made: names in the folder that belong
    to these results; others do not, and stay."""

    inputs: Inputs
    state: str = DONE
    reason: str = ""
    seconds: float = 0.0
    attempts: int = 1
    node: str = ""
    finished: str = ""
    made: tuple[str, ...] = ()


def write_record(folder: Path, record: Record) -> None:
    """Writes RECORD into a folder of results. Raises OutputError."""
    about = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(record)}
    write_text(folder / RECORD, json.dumps(about, indent=1) + "\n")


def read_record(folder: Path) -> Record | None:
    """The record of that folder, None if it has none. Raises DatasetError if it is damaged or of a newer version."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT or int(about["version"]) > VERSION:
            raise ValueError(f"it is {about['format']!r} of version {about['version']}")
        inputs = about["inputs"]
        fields = {f.name: about[f.name] for f in dataclasses.fields(Record) if f.name not in ("inputs", "made")}
        return Record(Inputs(**{**inputs, "options": tuple(inputs["options"])}), made=tuple(about["made"]), **fields)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{shown(path)} cannot be read ({error})") from error


def finished(folder: Path) -> list[str]:
    """The recordings whose whole results lie in the folder of a fleet, in the order of their names; empty if it is none. Raises
    DatasetError."""
    records = [read_record(path) for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    return [record.inputs.place for record in records if record is not None and record.state == DONE]


def inputs_of(source: Source, parameters: Mapping[str, Any], options: tuple[str, ...]) -> Inputs:
    """Without the source's content. Files that parameters or options name are read, what belongs to the weights among them if an
    accelerator may read it, and the models that ship with come_ros. Raises DatasetError."""
    words = [*map(str, parameters.values()), *options]
    weights = str(parameters.get("weights", ""))
    if weights and parameters.get("accelerator.name", "none") != "none":
        words += [kind.next_to(weights) for kind in COMPANIONS]
    named = {word for word in words if word and os.path.isfile(word)}
    try:
        files = {word: _fingerprint(word, os.stat(word).st_mtime_ns) for word in sorted(named)}
        files["come_ros/models"] = _content(MODELS, state_of(MODELS))
    except OSError as error:
        raise DatasetError(f"{shown(error.filename)} cannot be read: {error.strerror or error}") from error
    place = os.path.realpath(source.place)
    return Inputs(__version__, source.path, place, parameters=dict(parameters), options=options, files=files)


@functools.cache  # thousands of recordings name the same files
def _fingerprint(path: str, mtime_ns: int) -> str:
    return fingerprint(path)


@functools.cache
def _content(place: Path, state: str) -> str:
    return content_of(place)


def with_source(inputs: Inputs, place: Path, whole: bool) -> Inputs:
    """`inputs` with the state of the recording at `place`, and with its content if `whole`, which reads it. Raises DatasetError."""
    try:
        state = state_of(place)
        return dataclasses.replace(inputs, state=state, content=content_of(place) if whole else "")
    except OSError as error:
        raise DatasetError(f"{shown(inputs.source)} cannot be read: {error.strerror or error}") from error
