"""Snapshots: all that a training needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from caffeio import atomic_write
from pipeline.errors import PipelineError
from pipeline.quantize.data_print import DataPrint

__all__ = [
    "Snapshot",
    "contents_of",
    "fingerprint",
    "load_snapshot",
    "random_states",
    "save_snapshot",
    "set_random_states",
]

_FORMAT = 3


@dataclass(frozen=True)
class Snapshot:
    """The state of a training after some iterations.

    Attributes
    ----------
    iteration : int
        Iterations done.
    state : dict
        Tensors and plain values only: they are all that loading allows.
    made_of : dict of str to str
        What it belongs to: a name for people, and a digest.
    """

    iteration: int
    state: dict[str, Any]
    made_of: dict[str, str]


def fingerprint(**parts: object) -> dict[str, str]:
    """Return a digest of each part of what a training is made of."""
    return {
        name: hashlib.sha256(repr(part).encode()).hexdigest()[:16] for name, part in parts.items()
    }


def contents_of(prints: Iterable[DataPrint]) -> dict[str, str]:
    """Return a digest of number and contents of the samples of each source.

    Times of files do not count: a training may go on where its data is a copy.
    """
    by_path: dict[str, list[object]] = {}
    for p in prints:
        by_path.setdefault(p.path, []).append((p.count, p.contents))
    return fingerprint(**{f"contents of '{path}'": parts for path, parts in by_path.items()})


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Return where the random numbers are that Dropout draws: on the CPU, and on a CUDA device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Go on with random numbers from there; those of a device that was not in use stay."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def save_snapshot(snapshot: Snapshot, path: Path) -> None:
    """Write a snapshot, whole or not at all; an older one is replaced.

    Raises
    ------
    caffeio.CaffeFileError
        If it cannot be written.
    """
    content = {"format": _FORMAT, **vars(snapshot)}
    with atomic_write(path, overwrite=True) as temporary:
        torch.save(content, temporary)


def load_snapshot(path: Path, made_of: Mapping[str, str]) -> Snapshot:
    """Read a snapshot of the training that `made_of` describes.

    Raises
    ------
    PipelineError
        If there is none, it is damaged, or it belongs to another training: the message says
        which part differs.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        if content["format"] != _FORMAT:
            raise PipelineError(
                f"{path}: was written by another version of this program; start anew"
            )
        snapshot = Snapshot(content["iteration"], content["state"], content["made_of"])
    except FileNotFoundError:
        raise PipelineError(f"{path}: there is no snapshot to go on from; start anew") from None
    except PipelineError:
        raise
    except Exception as error:
        raise PipelineError(f"{path}: is damaged: {error}; start anew") from None
    other = [name for name, digest in made_of.items() if snapshot.made_of.get(name) != digest]
    if other:
        raise PipelineError(
            f"{path}: was made with other {' and '.join(other)}; go on with what it was made "
            "with, or start anew"
        )
    return snapshot
