"""Images in files: a folder of them, or a list with their labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from caffeio.data.decode import decode_image
from caffeio.data.source import Label, Sample, Source
from caffeio.errors import CaffeFileError
from caffeio.files import read_text_file

__all__ = ["IMAGE_ENDINGS", "ImageSource", "open_folder", "open_list"]

IMAGE_ENDINGS = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".webp", ".jp2"}
)

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
    """

    path: Path
    files: Sequence[Path]
    labels: Sequence[Label]
    color: bool = True

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Sample:
        """Decode an image."""
        file = self.files[index]
        try:
            data = file.read_bytes()
        except OSError as error:
            raise CaffeFileError(file, f"cannot be read: {error.strerror}") from None
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
    files = sorted(
        (f for f in path.rglob("*") if f.suffix.lower() in IMAGE_ENDINGS and f.is_file()),
        key=lambda f: f.relative_to(path).as_posix(),
    )
    if not files:
        endings = ", ".join(sorted(IMAGE_ENDINGS))
        raise CaffeFileError(path, f"holds no images ({endings})")
    if not class_folders:
        return ImageSource(path, files, [None] * len(files), color)
    parents = [f.relative_to(path).parts for f in files]
    loose = next((f for f, parts in zip(files, parents, strict=True) if len(parts) == 1), None)
    if loose is not None:
        raise CaffeFileError(loose, "lies outside of the class folders, so that it has no label")
    classes = sorted({entry.name for entry in path.iterdir() if entry.is_dir()})
    labels = [classes.index(parts[0]) for parts in parents]
    return ImageSource(path, files, labels, color)


def _label(word: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return None


def open_list(path: str | Path, root: str | Path | None = None, color: bool = True) -> ImageSource:
    """Open a list of images: a text file with ``path label`` or ``path`` on each line.

    The last space splits path and label, as in Caffe, or the last tab; where no line ends in a
    number there are no labels and the whole line is the path.

    Parameters
    ----------
    path : path-like
        The list.
    root : path-like, optional
        Where relative paths begin; the list's own folder if not given.
    color : bool
        Decode to three channels, BGR; else to one.

    Raises
    ------
    CaffeFileError
        If the list is empty, some lines have labels and others have not, or an image does not
        exist; with the line.
    """
    path = Path(path)
    base = path.parent if root is None else Path(root)
    files: list[Path] = []
    labels: list[Label] = []
    for number, line in enumerate(read_text_file(path).splitlines(), 1):
        text = line.strip()
        if not text:
            continue
        name, word = _LAST_SPACE.split(text) if _LAST_SPACE.search(text) else ("", text)
        label = _label(word) if name else None
        if label is None:
            name = text
        if labels and (label is None) != (labels[0] is None):
            have, lack = ("a label", "none") if label is not None else ("no label", "one")
            raise CaffeFileError(path, f"has {have} here, but {lack} before", number)
        file = base / name.strip()
        if not file.is_file():
            raise CaffeFileError(path, f"names the image '{file}', which does not exist", number)
        files.append(file)
        labels.append(label)
    if not files:
        raise CaffeFileError(path, "lists no images")
    return ImageSource(path, files, labels, color)
