"""The first sample of the data, held against the net before any work: size, channels, floats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from caffeio import CaffeFileError, NetError
from caffeio.data import Sample, Transform
from pipeline.errors import PipelineError
from pipeline.layers import Shape
from pipeline.quantize.feed import Feed
from pipeline.runtime.executor import FloatNet
from pipeline.runtime.shapes import input_shapes

__all__ = ["Checked", "check_data"]


@dataclass(frozen=True)
class Checked:
    """What the first sample tells.

    Attributes
    ----------
    shapes : dict of blob name to tuple of int
        Of the net's inputs, one batch.
    notes, warnings : tuple of str
    """

    shapes: dict[str, Shape]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def check_data(net: FloatNet, feed: Feed, batch_size: int, where: str) -> Checked:
    """Read one sample and see whether the net can take such data.

    Parameters
    ----------
    net : FloatNet
    feed : Feed
    batch_size : int
    where : str
        The data's place in the config, for messages.

    Raises
    ------
    PipelineError
        If there is no sample.
    CaffeFileError
        If the sample is damaged, or not of the channels or of a size that the net can take; it
        names the sample.
    caffeio.NetError
        If the net is at fault, with data as its prototxt says.
    """
    if not len(feed):
        raise PipelineError(f"{where} holds no samples from 'start' on")
    declared = input_shapes(net.net)
    place = feed.start if feed.places is None else feed.places[0]
    size = min(batch_size, len(feed))
    shapes: dict[str, Shape] = {}
    notes: list[str] = list(feed.notes)
    others: list[tuple[str, str, Shape, Shape]] = []
    for blob, (source, transform) in feed.inputs.items():
        sample = source[place]
        try:
            array = transform.apply(sample)
        except ValueError as error:
            raise CaffeFileError(sample.name, str(error)) from None
        shapes[blob] = (size, *array.shape)
        _check_channels(sample, array.shape, blob, declared.get(blob))
        want = declared.get(blob)
        if want is not None and array.shape != tuple(want[1:]):
            others.append((sample.name, blob, array.shape, want))
        if line := _changed_floats(sample, transform):
            notes.append(f"{where}: '{source.path}' {line}")
    if feed.label is not None and feed.label.shape is not None and not feed.label.optional:
        shapes[feed.label.blob] = (size, *feed.label.shape[1:])
    try:
        net.shapes(shapes)
    except NetError as error:
        if not others:
            raise
        name, blob, got, want = others[0]
        raise CaffeFileError(
            name,
            f"gives {_text(got)} for the net's input '{blob}', but the prototxt declares "
            f"{_text(want[1:])}: resize or crop the data to that size ({error})",
        ) from None
    warnings = tuple(
        f"{where}: samples are {_text(got)}, but the prototxt declares {_text(want[1:])} for the "
        f"net's input '{blob}'"
        for _, blob, got, want in others
        if not _placeholder(want)
    )
    return Checked(shapes, tuple(notes), warnings)


def _check_channels(sample: Sample, shape: Shape, blob: str, want: Shape | None) -> None:
    """Raise if a sample has other axes or channels than the prototxt declares."""
    if want is None:
        return
    images = len(want) == 4 and len(shape) == 3
    if len(shape) == len(want) - 1 and not (images and shape[0] != want[1]):
        return
    cure = ""
    if sample.image and images:
        cure = {
            1: "; color = false, or channel_order = 'GRAY', decodes to one channel",
            3: "; color = true decodes to three channels",
        }.get(want[1], "")
    raise CaffeFileError(
        sample.name,
        f"gives {_text(shape)} for the net's input '{blob}', but the prototxt declares "
        f"{_text(want[1:])}{cure}",
    )


def _placeholder(want: Shape) -> bool:
    """Whether a declared size says nothing: 1×1 stands for whatever the data has."""
    return len(want) == 4 and max(want[2:]) <= 1


def _changed_floats(sample: Sample, transform: Transform) -> str:
    """Say what a transform does to data that is stored as floats, which Caffe reads as it is."""
    if sample.image or sample.data.dtype == np.uint8:
        return ""
    changed = [
        key
        for key, idle in (
            ("resize", transform.resize is None),
            ("crop", transform.crop is None),
            ("mean", transform.mean is None),
            ("scale", np.array_equal(transform.scale, 1.0)),
            ("transpose", not transform.transpose_hw),
        )
        if not idle
    ]
    if not changed:
        return ""
    return f"holds floats, which [transform] changes: {', '.join(changed)}"


def _text(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "one number"
