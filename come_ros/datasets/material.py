"""Photographs for training: textures, pictures and panoramas in a user's folder (see come_ros/training/README.md for sources)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ..errors import DatasetError
from ..types import U8
from .image_file import decoded_file
from .panoramas import load_panorama, random_view
from .rooms.scene import Scene
from .rooms.textures import TEXTURE_SIZE, fill_texture

SHEETS = "previews"  # folder of ambientCG's contact sheets
# Px: size of one texture; step (x, y); origin of the first; textures per row
CELL, PITCH, MARGIN, A_ROW = 128, (144, 176), 16, 7
BLANK = 250  # of 255: the blank paper of a sheet
LEAST_SIDE = 96  # px of a picture
SKIPPED = frozenset({"chars"})  # folders that are skipped: thousands of white sheets with one letter each
VIEWS = 4  # pictures cut from each panorama
TEXTURE_SHARE, PICTURE_SHARE = 0.5, 0.2  # share of a room's textures


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """textures: (h, w, 3) seamless ones. pictures: (h, w, 3) of any size. panoramas: (H, 2H, 3) equirectangular. All uint8 RGB."""

    textures: tuple[U8, ...] = ()
    pictures: tuple[U8, ...] = ()
    panoramas: tuple[U8, ...] = ()

    def __str__(self) -> str:
        return f"{len(self.textures)} textures, {len(self.pictures)} pictures, {len(self.panoramas)} panoramas"


def load_material(folder: str | Path) -> Material:
    """Everything usable under `folder`: contact sheets `previews/*.webp`, panoramas `*.hdr`, pictures `*.png`, `*.jpg`.

    Duplicates are used once; files that cannot be read are left out. Raises DatasetError if nothing is left.
    """
    textures: list[U8] = []
    pictures: list[U8] = []
    panoramas: list[U8] = []
    rng = np.random.default_rng(0)
    for path in _files(Path(folder)):
        if path.suffix.lower() == ".hdr":
            panorama = load_panorama(path)
            if panorama is not None:
                panoramas.append(panorama)
                pictures += [random_view(panorama, rng) for _ in range(VIEWS)]
            continue
        image = decoded_file(path, cv2.IMREAD_COLOR)
        if image is None:
            continue
        image = np.ascontiguousarray(image[:, :, ::-1])
        if path.suffix.lower() == ".webp" and path.parent.name == SHEETS:
            textures += cells(image)  # type: ignore[arg-type]
        elif min(image.shape[:2]) >= LEAST_SIDE:
            pictures.append(image)  # type: ignore[arg-type]
    if not textures and not pictures and not panoramas:
        raise DatasetError(
            f"{folder} holds no textures ({SHEETS}/*.webp), panoramas (*.hdr) or pictures (*.png, *.jpg): name the folder into which "
            f"the repositories of come_ros/training/README.md were cloned"
        )
    return Material(tuple(textures), tuple(pictures), tuple(panoramas))


def _files(folder: Path) -> Iterator[Path]:
    """Images under `folder` in a fixed order, each content once."""
    seen = set()
    for path in sorted(folder.rglob("*")):
        if path.parent.name in SKIPPED:
            continue
        if path.suffix.lower() in (".webp", ".hdr", ".png", ".jpg", ".jpeg") and path.is_file():
            digest = hashlib.sha1(path.read_bytes()).digest()
            if digest not in seen:
                seen.add(digest)
                yield path


def cells(sheet: U8) -> list[U8]:
    """The textures (h, w, 3) of a contact sheet (H, W, 3), without the blank paper about those that are not square."""
    found = []
    for top in range(MARGIN, sheet.shape[0] - CELL + 1, PITCH[1]):
        for column in range(A_ROW):
            left = MARGIN + column * PITCH[0]
            cell = sheet[top : top + CELL, left : left + CELL]
            if cell.shape[:2] != (CELL, CELL):
                continue
            inked = cell.min(axis=2) < BLANK
            rows, columns = np.flatnonzero(inked.mean(axis=1) > 0.25), np.flatnonzero(inked.mean(axis=0) > 0.25)
            if len(rows) < CELL // 3 or len(columns) < CELL // 3:
                continue
            found.append(cell[2 : rows[-1] - 1, 2 : columns[-1] - 1].copy())  # its border is blurred by the compression
    return found


def dress(scene: Scene, material: Material, rng: np.random.Generator) -> Scene:
    """The same room with photographed textures and pictures in place of some of its own."""
    rows, drawn = scene.textures.copy(), rng.random(len(scene.textures))
    for row, number in zip(rows, drawn, strict=True):
        if number < TEXTURE_SHARE and material.textures:
            image = _tiled(material.textures[rng.integers(len(material.textures))], rng)
        elif TEXTURE_SHARE <= number < TEXTURE_SHARE + PICTURE_SHARE and material.pictures:
            image = _cut(material.pictures[rng.integers(len(material.pictures))], rng)
        else:
            continue
        tint = rng.uniform(0.7, 1.15) * rng.uniform(0.92, 1.08, 3)
        fill_texture(row, np.ascontiguousarray(image / 255.0 * tint, np.float32))
    return dataclasses.replace(scene, textures=rows)


def _tiled(texture: U8, rng: np.random.Generator) -> U8:
    """A texture as it is, or repeated two by two, for coarse or fine walls."""
    side = TEXTURE_SIZE
    n = 2 if rng.random() < 0.6 else 1
    one = cv2.resize(texture, (side // n, side // n), interpolation=cv2.INTER_AREA if n > 1 else cv2.INTER_CUBIC)
    image = np.tile(one, (n, n, 1))
    return image.transpose(1, 0, 2) if rng.random() < 0.5 else image  # type: ignore[return-value]


def _cut(picture: U8, rng: np.random.Generator) -> U8:
    """A square part of a picture."""
    side, shorter = TEXTURE_SIZE, min(picture.shape[:2])
    extent = int(rng.uniform(min(LEAST_SIDE, shorter), shorter))
    v, u = (int(rng.integers(n - extent + 1)) for n in picture.shape[:2])
    return cv2.resize(picture[v : v + extent, u : u + extent], (side, side), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]
