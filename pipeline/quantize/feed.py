"""From the config's data tables to batches for a net's inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from caffeio import Net
from caffeio.data import (
    DATA_LAYERS,
    Batch,
    NotEnoughData,
    Source,
    Transform,
    batches,
    label_top,
    net_source,
    open_source,
    read_mean,
)
from pipeline.config.base import DataConfig, TransformConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.runtime.schedule import optional_inputs

__all__ = ["Feed", "open_feed", "to_transform"]


@dataclass(frozen=True)
class Feed:
    """Opened data for every input of a net.

    Attributes
    ----------
    inputs : dict of blob name to (Source, Transform)
    start : int
        Samples to pass over.
    label_blob : str or None
        Input blob of the net that takes the labels.
    """

    inputs: dict[str, tuple[Source, Transform]]
    start: int
    label_blob: str | None

    def __len__(self) -> int:
        """Return the number of samples there are."""
        first, _ = next(iter(self.inputs.values()))
        return max(len(first) - self.start, 0)

    def batches(self, batch_size: int, batch_num: int | None = None) -> Iterator[Batch]:
        """Read batches in order, decoded ahead; see `caffeio.data.batches`."""
        try:
            yield from batches(self.inputs, batch_size, batch_num, self.start)
        except NotEnoughData as error:
            raise PipelineError(
                f"{error}; lower batch_num or batch_size, or give more data"
            ) from None

    def for_net(self, batch: Batch) -> dict[str, np.ndarray]:
        """Return what the net is to be given: the data, and the labels if it takes them."""
        if self.label_blob is None or batch.labels is None:
            return batch.inputs
        return {**batch.inputs, self.label_blob: batch.labels.astype(np.float32)}

    def close(self) -> None:
        """Close all sources."""
        for source, _ in self.inputs.values():
            source.close()


def open_feed(
    net: Net, tables: tuple[DataConfig, ...], transform: TransformConfig, where: str
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
    if tables[0].kind == "net":
        return _own_feed(net, tables[0])
    opened: dict[str, tuple[Source, Transform]] = {}
    data_inputs = _data_inputs(net)
    needed = [blob for blob in data_inputs if blob not in optional_inputs(net)]
    for table in tables:
        blob = table.input or (needed[0] if len(needed) == 1 else None)
        if blob is None or blob not in data_inputs:
            raise ConfigError(
                f"[{where}]: 'input' must be one of the net's inputs: {', '.join(data_inputs)}"
            )
        if blob in opened:
            raise ConfigError(f"[{where}]: input '{blob}' is given twice")
        opened[blob] = (_open(table, where), to_transform(table.transform or transform))
    absent = [blob for blob in needed if blob not in opened]
    if absent:
        raise ConfigError(f"[{where}]: no data for the net's input '{absent[0]}'")
    return Feed(opened, tables[0].start, _label_input(net))


def _label_input(net: Net) -> str | None:
    """Return the second top of a data layer, which Caffe fills with labels, or input 'label'."""
    for layer in net.layers:
        if label := label_top(layer):
            return label
    return "label" if "label" in net.inputs and len(net.inputs) > 1 else None


def _data_inputs(net: Net) -> list[str]:
    return [blob for blob in net.inputs if blob != _label_input(net)]


def _own_feed(net: Net, table: DataConfig) -> Feed:
    """Open the data that the net's own data layer names, relative to `root`."""
    makers = [x for x in net.layers if x.type in DATA_LAYERS]
    if len(makers) != 1:
        raise ConfigError(
            f"kind = 'net': net '{net.name}' has {len(makers)} data layers in phase {net.phase}; "
            "exactly one is needed"
        )
    data = net_source(makers[0], table.root or ".")
    return Feed(dict(data.inputs), table.start, data.label_blob)


def _open(table: DataConfig, where: str) -> Source:
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
        )
    except TypeError as error:
        raise ConfigError(f"[{where}]: {error}") from None


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
