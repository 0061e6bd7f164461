"""What a data source is: a sequence of samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from caffeio.errors import reading

__all__ = ["Label", "NotEnoughData", "Order", "Sample", "Source", "unread_files"]

Label = int | float | np.ndarray | None
#: The order of colour channels; None where the source does not know what its channels are.
Order = Literal["BGR", "RGB"] | None


class NotEnoughData(ValueError):
    """Fewer samples than were asked for.

    Attributes
    ----------
    asked, found : int
        Samples.
    """

    def __init__(self, message: str, asked: int, found: int) -> None:
        self.asked = asked
        self.found = found
        super().__init__(message)


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample as it is stored, before any transform.

    Attributes
    ----------
    data : ndarray
        A decoded image, H×W×C uint8, or an array C×H×W (or of any shape, for inputs that are
        no images), uint8 or float32.
    label : int, float, ndarray or None
    name : str
        For messages: the file, or the file and what in it.
    image : bool
        Whether `data` is H×W×C.
    order : {"BGR", "RGB"} or None
        Of three channels; None: not known, taken as they are.
    """

    data: np.ndarray
    label: Label
    name: str
    image: bool = False
    order: Order = None


class Source(ABC):
    """Samples by index. Reading is safe from several threads."""

    #: Where the samples come from.
    path: Path
    #: What the user should know of them: files that are not read.
    notes: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Return sample `index`, which is in range."""

    def __getitem__(self, index: int) -> Sample:
        """Return a sample; a negative index counts from the end.

        Raises
        ------
        IndexError
            If there is no such sample.
        CaffeFileError
            If the sample is damaged; it names it.
        """
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"'{self.path}' has {count} samples, there is no number {index}")
        with reading(self.path, f"sample {index}"):
            return self.read(index % count)

    def close(self) -> None:  # noqa: B027 - most sources hold nothing
        """Release files that are kept open; the source is not used after that."""


def unread_files(folder: Path, files: Iterable[Path]) -> tuple[str, ...]:
    """Return a note on files of a folder that are not read, by their endings; hidden ones aside.

    Parameters
    ----------
    folder : Path
    files : iterable of Path
        Files and folders; only the files count.
    """
    kinds = Counter(
        f.suffix.lower() or "no ending" for f in files if not f.name.startswith(".") and f.is_file()
    )
    if not kinds:
        return ()
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    plural = "files that are" if kinds.total() > 1 else "file that is"
    return (f"'{folder}' also holds {kinds.total()} {plural} not read: {counts}",)
