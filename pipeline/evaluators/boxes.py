"""Mean average precision of detected boxes, as VOC and as COCO count it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from caffeio.data import Batch
from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluators.overlap import overlaps

__all__ = ["MeanAveragePrecision", "read_boxes"]

_COLUMNS = "sample label xmin ymin xmax ymax [difficult]"
#: Detections of one class in one image that COCO counts.
_MOST = 100
_COCO_LEVELS = tuple(0.5 + 0.05 * i for i in range(10))


@dataclass(frozen=True)
class _Truth:
    """True boxes of one class in one image: (N, 4), and which of them count for nothing."""

    boxes: np.ndarray
    difficult: np.ndarray


def read_boxes(path: Path) -> dict[str, dict[int, list[list[float]]]]:
    """Read a list of true boxes: by sample and label, rows of xmin ymin xmax ymax difficult.

    Parameters
    ----------
    path : Path
        A line for each box: ``sample label xmin ymin xmax ymax [difficult]``, separated by spaces,
        tabs or commas; the sample by its file name, corners as shares of the image's width and
        height, as DetectionOutput gives them. Lines that begin with # are passed over.

    Raises
    ------
    ConfigError
        With the line, if one is not of that form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"evaluate.boxes: '{path}' cannot be read: {error}") from None
    found: dict[str, dict[int, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for number, line in enumerate(lines, 1):
        parts = line.replace(",", " ").split()
        if not parts or parts[0].startswith("#"):
            continue
        try:
            label, *corners = (float(p) for p in parts[1:])
            if len(corners) not in (4, 5) or label != int(label):
                raise ValueError
        except ValueError:
            raise ConfigError(
                f"evaluate.boxes: {path}:{number}: '{line.strip()}' is not {_COLUMNS}"
            ) from None
        if max(corners[:4]) > 2:
            raise ConfigError(
                f"evaluate.boxes: {path}:{number}: corners are shares of width and height, 0 to 1; "
                "divide pixels by the image's size"
            )
        found[parts[0]][int(label)].append([*corners[:4], *corners[4:], 0.0][:5])
    return found


class MeanAveragePrecision:
    """Mean over the classes of the area under precision over recall, in percent.

    Parameters
    ----------
    boxes : Path
        The true boxes, see `read_boxes`.
    style : {"voc", "coco"}
        VOC 2010 and later: at an overlap of 0.5, the whole area under the largest precision at
        each recall or beyond; a box goes to the true one it overlaps most. COCO: mean over the
        overlaps 0.5 to 0.95, precision at 101 recalls; a box goes to the best true one that is
        still free; at most 100 boxes of a class in an image.

    Notes
    -----
    Detections are outputs with rows of DetectionOutput. Classes without true boxes are left out,
    and true boxes that are "difficult" count neither way.
    """

    def __init__(self, boxes: Path, style: Literal["voc", "coco"] = "voc") -> None:
        self._path, self._coco = boxes, style == "coco"
        self._listed = read_boxes(boxes)
        self._by_file = {Path(name).name: name for name in self._listed}
        self._by_stem = {Path(name).stem: name for name in self._listed}
        self._truths: dict[tuple[int, int], _Truth] = {}  # by image and class
        self._found: dict[int, list[np.ndarray]] = defaultdict(list)  # by class: image score box
        self._images, self._named = 0, 0
        self._first = ""

    def update(self, outputs: Mapping[str, np.ndarray], batch: Batch) -> None:
        """Take in the boxes of some images."""
        rows = [y.reshape(-1, 7) for y in outputs.values() if y.ndim == 4 and y.shape[3] == 7]
        if not rows:
            raise PipelineError(
                f"map needs an output of DetectionOutput; the outputs are {', '.join(outputs)}"
            )
        for i, name in enumerate(batch.names):
            self._first = self._first or name
            listed = self._of(name)
            self._named += bool(listed)
            for label, corners in listed.items():
                array = np.array(corners)
                self._truths[self._images + i, label] = _Truth(array[:, :4], array[:, 4] > 0)
        found = rows[-1][rows[-1][:, 1] >= 0].astype(np.float64)
        for label in np.unique(found[:, 1]):
            own = found[found[:, 1] == label]
            self._found[int(label)].append(
                np.column_stack([own[:, 0] + self._images, own[:, 2], own[:, 3:]])
            )
        self._images += len(batch.names)

    def _of(self, name: str) -> Mapping[int, list[list[float]]]:
        """Return the true boxes of a sample, by its name, its file's, or that without ending."""
        path = Path(name)
        key = name if name in self._listed else self._by_file.get(path.name)
        key = key or self._by_stem.get(path.stem, "")
        return self._listed.get(key, {})

    def result(self) -> dict[str, float]:
        """Return mAP by overlap, in percent."""
        if not self._named:
            raise PipelineError(
                f"'{self._path}' names none of the samples, of which the first is '{self._first}'"
            )
        levels = _COCO_LEVELS if self._coco else (0.5,)
        labels = sorted({label for _, label in self._truths})
        by_level = [[self._precision(label, level) for label in labels] for level in levels]
        means = [
            100 * float(np.mean([p for p in level if p is not None] or [np.nan]))
            for level in by_level
        ]
        if not self._coco:
            return {"mAP@0.5": means[0]}
        return {"mAP": float(np.mean(means)), "mAP@0.5": means[0], "mAP@0.75": means[5]}

    def _precision(self, label: int, level: float) -> float | None:
        """Return the average precision of one class; None if it has no true boxes that count."""
        truths = {image: t for (image, other), t in self._truths.items() if other == label}
        total = sum(int((~t.difficult).sum()) for t in truths.values())
        if not total:
            return None
        rows = np.concatenate([*self._found.get(label, ()), np.zeros((0, 6))])
        rows = rows[np.argsort(-rows[:, 1], kind="stable")]
        taken = {image: np.zeros(len(t.boxes), bool) for image, t in truths.items()}
        seen: dict[float, int] = defaultdict(int)
        hits = []
        for row in rows:
            seen[row[0]] += 1
            if self._coco and seen[row[0]] > _MOST:
                continue
            truth = truths.get(int(row[0]))
            hit = 0 if truth is None else self._hit(row, truth, taken[int(row[0])], level)
            if hit is not None:
                hits.append(hit)
        right = np.cumsum(hits)
        recall, precision = right / total, right / np.arange(1, len(hits) + 1)
        # the largest precision at this recall or beyond
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        if self._coco:
            at = np.searchsorted(recall, np.linspace(0, 1, 101))
            return float(np.append(precision, 0.0)[at].mean())
        return float((np.diff(recall, prepend=0.0) * precision).sum())

    def _hit(self, row: np.ndarray, truth: _Truth, taken: np.ndarray, level: float) -> int | None:
        """Say whether a box is right (1) or wrong (0); None if it counts neither way."""
        shared = overlaps(row[None, 2:], truth.boxes)[0]
        if self._coco:  # what is still free, and what counts before what is difficult
            free = np.where(taken, -1.0, shared)
            counted = np.where(truth.difficult, -1.0, free)
            best = int(np.argmax(counted if counted.max() >= level else free))
            shared = free
        else:
            best = int(np.argmax(shared))
        if shared[best] < level:
            return 0
        if truth.difficult[best]:
            taken[best] = self._coco
            return None
        if taken[best]:
            return 0
        taken[best] = True
        return 1
