"""From the config's data tables to batches for a net's inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from caffeio import CaffeFileError, MissingFileError, Net
from caffeio.data import (
    DATA_LAYERS,
    Batch,
    Choice,
    NotEnoughData,
    Source,
    Transform,
    batches,
    choose_samples,
    label_top,
    net_source,
    open_source,
    read_mean,
)
from pipeline.config.base import DataConfig, TransformConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.layers import Shape
from pipeline.layers.int8 import INT8_TYPES
from pipeline.quantize.outputs import compared_blobs
from pipeline.runtime.schedule import last_values, optional_inputs
from pipeline.runtime.shapes import input_shapes

__all__ = ["Feed", "LabelInput", "open_feed", "to_transform"]


@dataclass(frozen=True)
class LabelInput:
    """The input of a net that takes the labels.

    Attributes
    ----------
    blob : str
    needed : bool
        Something that is quantized or compared depends on it; else it does not matter what the
        labels are.
    optional : bool
        The net runs without it.
    shape : tuple of int or None
        As the prototxt gives it, batch first.
    """

    blob: str
    needed: bool = True
    optional: bool = False
    shape: Shape | None = None

    @classmethod
    def of(cls, net: Net, outputs: Sequence[str] = ()) -> LabelInput | None:
        """Return that of a net of which some blobs are compared; None if it takes no labels."""
        blob = _label_input(net)
        if blob is None:
            return None
        reached = {value for value in net.readers if value.blob == blob and value.version == 0}
        quantized = False
        for layer, link in zip(net.layers, net.links, strict=True):
            if reached.intersection(link.reads):
                reached.update(link.writes)
                quantized = quantized or layer.type in INT8_TYPES
        last = last_values(net)
        compared = {last[name] for name in compared_blobs(net, outputs)}
        return cls(
            blob,
            quantized or bool(compared & reached),
            blob in optional_inputs(net),
            input_shapes(net).get(blob),
        )

    def array(self, batch: Batch) -> np.ndarray | None:
        """Return what the net is given for a batch; None: nothing.

        Raises
        ------
        PipelineError
            If the labels are needed and there are none.
        """
        count = len(batch.names)
        if not self.needed:
            return None if self.optional else np.zeros((count, *(self.shape or ())[1:]), np.float32)
        if batch.labels is None:
            why = batch.unlabelled or "the data has none"
            raise PipelineError(
                f"the net's outputs depend on its input '{self.blob}', labels: {why}"
            )
        labels = batch.labels.astype(np.float32)
        wanted = (count, *(self.shape or ())[1:])
        return labels.reshape(wanted) if labels.size == math.prod(wanted) else labels


@dataclass(frozen=True)
class Feed:
    """Opened data for every input of a net.

    Attributes
    ----------
    inputs : dict of blob name to (Source, Transform)
    start : int
        Samples to pass over.
    label : LabelInput or None
        Input of the net that takes the labels.
    places : tuple of int or None
        The samples that are read, in order; None: all from `start` on.
    notes : tuple of str
        What the user should know of the data.
    readers : dict of blob name to str
        The first layer that reads each input, for messages.
    """

    inputs: dict[str, tuple[Source, Transform]]
    start: int
    label: LabelInput | None = None
    places: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()
    readers: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of samples there are."""
        if self.places is not None:
            return len(self.places)
        first, _ = next(iter(self.inputs.values()))
        return max(len(first) - self.start, 0)

    @property
    def label_blob(self) -> str | None:
        """The input of the net that takes the labels."""
        return self.label.blob if self.label else None

    def batches(self, batch_size: int, batch_num: int | None = None) -> Iterator[Batch]:
        """Read batches in order, decoded ahead; see `caffeio.data.batches`.

        Raises
        ------
        PipelineError
            At once, if there are fewer samples than `batch_num` batches hold.
        CaffeFileError
            While iterating: a sample is damaged, or holds NaN or infinity; it names the sample.
        """
        try:
            found = batches(self.inputs, batch_size, batch_num, self.start, places=self.places)
        except NotEnoughData as error:
            raise PipelineError(
                f"{error}; lower batch_num or batch_size, or give more data"
            ) from None
        return self._finite(found)

    def _finite(self, found: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches; raise for the first that holds NaN or infinity."""
        for batch in found:
            for blob, x in batch.inputs.items():
                if not np.isfinite(x).all():
                    raise self._not_finite(batch, blob)
            yield batch

    def _not_finite(self, batch: Batch, blob: str) -> CaffeFileError:
        """Return the error that names the first sample of a batch that is not finite."""
        (source, _), x = self.inputs[blob], batch.inputs[blob]
        row = int(np.argmin(np.isfinite(x).reshape(len(x), -1).all(axis=1)))
        sample = source[batch.places[row]]
        where = f"for the net's input '{blob}'"
        if blob in self.readers:
            where += f", which layer '{self.readers[blob]}' reads"
        if np.isfinite(sample.data).all():
            what, cure = "is finite, but [transform] makes of it", "check its mean, scale and std"
        else:
            what, cure = "holds", "mend the sample or leave it out"
        place = ", ".join(map(str, np.argwhere(~np.isfinite(x[row]))[0]))
        return CaffeFileError(
            sample.name,
            f"{what} {np.isnan(x[row]).sum()} NaN and {np.isinf(x[row]).sum()} infinite values "
            f"{where} (the first at [{place}]); {cure}",
        )

    def chosen(self, how: Choice, count: int, seed: int = 0) -> Feed:
        """Return a feed of some of the samples; of all, in order, if there are not so many."""
        if count > len(self):
            return self
        places = choose_samples(how, count, len(self), seed)
        return replace(self, places=tuple(self.start + i for i in places))

    def after(self, count: int) -> Feed:
        """Return a feed of what is left behind the first `count` samples."""
        places = range(self.start, self.start + len(self)) if self.places is None else self.places
        return replace(self, places=tuple(places[count:]))

    def for_net(self, batch: Batch) -> dict[str, np.ndarray]:
        """Return what the net is to be given: the data, and the labels if they matter."""
        labels = self.label.array(batch) if self.label else None
        if labels is None:
            return batch.inputs
        assert self.label is not None
        return {**batch.inputs, self.label.blob: labels}

    def close(self) -> None:
        """Close all sources."""
        for source, _ in self.inputs.values():
            source.close()


def open_feed(
    net: Net,
    tables: tuple[DataConfig, ...],
    transform: TransformConfig,
    where: str,
    *,
    labelled: bool = True,
    outputs: Sequence[str] = (),
) -> Feed:
    """Open the data that the config names.

    Parameters
    ----------
    net : Net
        Whose inputs are to be fed.
    tables : tuple of DataConfig
        One for each input.
    transform : TransformConfig
        For tables without one of their own.
    where : str
        The tables' place in the config, for messages.
    labelled : bool
        False: labels are read only if the net needs them, so that none can be wrong.
    outputs : sequence of str
        The blobs that are compared; by default the net's outputs.

    Returns
    -------
    Feed

    Raises
    ------
    ConfigError
        If tables and inputs do not fit together.
    CaffeFileError
        If the data cannot be opened.
    """
    if not tables:
        raise ConfigError(f"[{where}] is missing: it names the samples")
    label = LabelInput.of(net, outputs)
    if tables[0].kind == "net":
        return _own_feed(net, tables[0], label)
    labelled = labelled or (label is not None and label.needed)
    opened: dict[str, tuple[Source, Transform]] = {}
    data_inputs = _data_inputs(net)
    needed = [blob for blob in data_inputs if blob not in optional_inputs(net)]
    for table in tables:
        blob = table.input or (needed[0] if len(needed) == 1 else None)
        if not data_inputs:
            raise ConfigError(
                f"[{where}]: net '{net.name}' has no inputs: its layers make their data themselves"
            )
        if blob is None or blob not in data_inputs:
            raise ConfigError(
                f"[{where}]: 'input' must be one of the net's inputs: {', '.join(data_inputs)}"
            )
        if blob in opened:
            raise ConfigError(f"[{where}]: input '{blob}' is given twice")
        to_input = to_transform(table.transform or transform)
        opened[blob] = (_open(table, where, labelled), to_input)
    absent = [blob for blob in needed if blob not in opened]
    if absent:
        raise ConfigError(f"[{where}]: no data for the net's input '{absent[0]}'")
    notes = tuple(f"{where}: {note}" for source, _ in opened.values() for note in source.notes)
    return Feed(opened, tables[0].start, label, notes=notes, readers=_first_readers(net))


def _label_input(net: Net) -> str | None:
    """Return the second top of a data layer, which Caffe fills with labels, or input 'label'."""
    for layer in net.layers:
        if label := label_top(layer):
            return label
    return "label" if "label" in net.inputs and len(net.inputs) > 1 else None


def _data_inputs(net: Net) -> list[str]:
    return [blob for blob in net.inputs if blob != _label_input(net)]


def _first_readers(net: Net) -> dict[str, str]:
    """Return the name of the first layer that reads each input."""
    return {
        value.blob: net.layers[min(readers)].name
        for value, readers in net.readers.items()
        if value.version == 0 and readers
    }


def _own_feed(net: Net, table: DataConfig, label: LabelInput | None) -> Feed:
    """Open the data that the net's own data layer names, relative to `root`."""
    makers = [x for x in net.layers if x.type in DATA_LAYERS]
    if len(makers) != 1:
        raise ConfigError(
            f"kind = 'net': net '{net.name}' has {len(makers)} data layers in phase {net.phase}; "
            "exactly one is needed"
        )
    data = net_source(makers[0], table.root or ".")
    return Feed(dict(data.inputs), table.start, label, readers=_first_readers(net))


def _open(table: DataConfig, where: str, labelled: bool) -> Source:
    assert table.source is not None
    labels = str(table.labels_file) if table.labels_file else table.label_dataset
    try:
        return open_source(
            table.source,
            table.kind,
            color=table.color,
            root=table.root,
            class_folders=table.class_folders,
            dataset=table.dataset,
            labels=labels,
            order=table.order,
            input_shape=table.input_shape,
            dtype=table.data_type,
            labelled=labelled,
        )
    except TypeError as error:
        raise ConfigError(f"[{where}]: {error}") from None
    except MissingFileError as error:
        what = f"does not exist; [{where}] of the config names it"
        raise MissingFileError(error.path, what) from None


def to_transform(table: TransformConfig) -> Transform:
    """Return the transform that ``[transform]`` describes, reading its mean file.

    Raises
    ------
    ConfigError
        If its settings do not fit together.
    CaffeFileError
        If the mean file cannot be read.
    """
    mean: tuple[float, ...] | np.ndarray | None
    mean = read_mean(table.mean) if isinstance(table.mean, Path) else table.mean
    scale: float | tuple[float, ...] = table.scale
    try:
        if table.std is not None:
            # one number divides by each; two lists must be as long
            scale = tuple(np.divide(scale, table.std).tolist())
        return Transform(
            resize=table.resize,
            crop=table.crop,
            channel_order=table.channel_order,
            mean=mean,
            scale=scale,
            transpose_hw=table.transpose,
            mirror=table.mirror,
        )
    except ValueError as error:
        raise ConfigError(f"[transform]: {error}") from None
