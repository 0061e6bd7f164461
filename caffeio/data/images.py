"""Images in files: a folder of them, or a list with their labels."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from caffeio.data.decode import decode_image
from caffeio.data.source import Label, Sample, Source, unread_files
from caffeio.errors import CaffeFileError, reading
from caffeio.files import read_text_file

__all__ = ["IMAGE_ENDINGS", "ImageSource", "open_folder", "open_list"]

IMAGE_ENDINGS = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".webp", ".jp2"}
)

#: Of whole numbers; larger ones become floats.
_MOST_LABEL = 1 << 62
#: Of a list: a path, and hundreds of boxes.
_LONGEST_LINE = 1 << 16
#: Between path and label.
_LAST_SPACE = re.compile(r"[ \t]+(?=[^ \t]+$)")


@dataclass(frozen=True)
class ImageSource(Source):
    """Image files and their labels.

    Attributes
    ----------
    path : Path
        The folder or list.
    files : sequence of Path
    labels : sequence of labels
        As long as `files`.
    color : bool
        Decode to three channels, BGR; else to one.
    notes : tuple of str
        Of a folder: how many files are not read.
    """

    path: Path
    files: Sequence[Path]
    labels: Sequence[Label]
    color: bool = True
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Sample:
        """Decode an image."""
        file = self.files[index]
        with reading(file):
            data = file.read_bytes()
        try:
            image = decode_image(data, self.color)
        except ValueError as error:
            raise CaffeFileError(file, str(error)) from None
        order = "BGR" if self.color else None
        return Sample(image, self.labels[index], str(file), image=True, order=order)  # type: ignore[arg-type]


def open_folder(path: str | Path, class_folders: bool = False, color: bool = True) -> ImageSource:
    """Open a folder of images.

    Parameters
    ----------
    path : path-like
        Searched through all its sub-folders; sorted by path.
    class_folders : bool
        The sub-folders directly in `path` are classes: an image's label is the place of its
        sub-folder among them, sorted by name. Else there are no labels.
    color : bool
        Decode to three channels, BGR; else to one.

    Raises
    ------
    CaffeFileError
        If there is no such folder, no image in it, or an image outside of the class folders.
    """
    path = Path(path)
    if not path.is_dir():
        raise CaffeFileError(path, "is not a folder")
    everything = [*path.rglob("*")]
    files = sorted(
        (f for f in everything if f.suffix.lower() in IMAGE_ENDINGS and f.is_file()),
        key=lambda f: f.relative_to(path).as_posix(),
    )
    notes = unread_files(path, set(everything).difference(files))
    if not files:
        endings = ", ".join(sorted(IMAGE_ENDINGS))
        raise CaffeFileError(path, f"holds no images ({endings})")
    if not class_folders:
        return ImageSource(path, files, [None] * len(files), color, notes)
    parents = [f.relative_to(path).parts for f in files]
    loose = next((f for f, parts in zip(files, parents, strict=True) if len(parts) == 1), None)
    if loose is not None:
        raise CaffeFileError(loose, "lies outside of the class folders, so that it has no label")
    classes = sorted({entry.name for entry in path.iterdir() if entry.is_dir()})
    labels = [classes.index(parts[0]) for parts in parents]
    return ImageSource(path, files, labels, color, notes)


def _number(word: str) -> int | float | None:
    with suppress(ValueError):
        number = float(word)
        return int(word) if abs(number) < _MOST_LABEL and word.lstrip("+-").isdecimal() else number
    return None


def open_list(
    path: str | Path,
    root: str | Path | None = None,
    color: bool = True,
    labelled: bool = True,
) -> ImageSource:
    """Open a list of images: a text file with ``path label`` or ``path`` on each line.

    The last space or tab splits path and label, as in Caffe; where there is no such image, the
    longest beginning of the line that is one (``path 4 0 11 9``, as lists for detection are
    written). A label of several numbers is an array; what is no number is no label.

    Parameters
    ----------
    path : path-like
        The list.
    root : path-like, optional
        Where relative paths begin; the list's own folder if not given.
    color : bool
        Decode to three channels, BGR; else to one.
    labelled : bool
        False: leave the labels aside, whatever they are.

    Raises
    ------
    CaffeFileError
        If the list is empty or an image does not exist; with the line.
    """
    path = Path(path)
    base = path.parent if root is None else Path(root)
    files: list[Path] = []
    labels: list[Label] = []
    for number, line in enumerate(read_text_file(path).splitlines(), 1):
        text = line.strip()
        if not text:
            continue
        if len(text) > _LONGEST_LINE:
            raise CaffeFileError(
                path, f"has a line of {len(text)} characters; is it a list of images?", number
            )
        found = _split(base, text)
        if found is None:
            name, word = _last_word(text)
            file = base / (name if name and _number(word) is not None else text)
            raise CaffeFileError(path, f"names the image '{file}', which does not exist", number)
        files.append(found[0])
        labels.append(found[1] if labelled else None)
    if not files:
        raise CaffeFileError(path, "lists no images")
    return ImageSource(path, files, labels, color)


def _split(base: Path, text: str) -> tuple[Path, Label] | None:
    """Return the image that a line names, and its label; None if there is no such image."""
    name, word = _last_word(text)
    last = _number(word) if name else None
    if last is not None and os.path.isfile(base / name):
        return base / name, last
    name = text
    while name:
        if os.path.isfile(base / name):
            numbers = [_number(word) for word in text[len(name) :].split()]
            whole = bool(numbers) and None not in numbers
            return base / name, np.array(numbers, np.float32) if whole else None
        name = _last_word(name)[0]
    return None


def _last_word(text: str) -> tuple[str, str]:
    """Split a line before its last word."""
    name, *word = _LAST_SPACE.split(text, maxsplit=1)
    return (name, word[0]) if word else ("", text)
