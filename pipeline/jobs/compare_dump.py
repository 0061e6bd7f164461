"""What a device or another runtime has dumped, held against our numbers: ``--compare-dump``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

import numpy as np

import kernels
from caffeio import CaffeFileError, Layer, Net
from caffeio.errors import reading
from caffeio.files import read_json
from caffeio.proto.caffe_pb2 import PoolingParameter
from pipeline.config.load import Config, load_config
from pipeline.errors import ConfigError
from pipeline.jobs.dump import INDEX, Entry, quantized_net, some_samples
from pipeline.jobs.unknown import names_unknown_fields
from pipeline.layers.int8 import QuantizedLayer
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.prepare import read_model
from pipeline.report.dumps import Compared
from pipeline.report.progress import Reporter

__all__ = ["compare_dump"]

#: Where nothing gives a step: this share of the largest value.
_SHARE = 1e-3


@names_unknown_fields
def compare_dump(
    config: str | Path | Config,
    folder: str | Path,
    *,
    output: str | Path | None = None,
    reporter: Reporter | None = None,
) -> tuple[Compared, ...]:
    """Hold what a device or another runtime has dumped against the integer net.

    Parameters
    ----------
    config : path-like or Config
        Whose run has written the model.
    folder : path-like
        With an ``index.json`` as `dump_model` writes it (of its arrays those of net "int8"), or
        with files ``<layer>_input`` and ``<layer>_output``, .npy, or .bin of float32 or int8 in our
        shape; "/" in a name is "%2F". The net's inputs are files of the blob's name; without them
        the evaluation data serves.
    output : path-like, optional
        Where the run wrote to, instead of the config's folder.
    reporter : Reporter, optional

    Returns
    -------
    tuple of Compared
        In the order of the net.

    Raises
    ------
    ConfigError, PipelineError, caffeio.CaffeFileError, caffeio.NetError
        If the model or the dump is not there, or does not fit.
    """
    config = config if isinstance(config, Config) else load_config(config)
    folder = Path(folder)
    int8 = quantized_net(config, output)
    entries = _entries(folder, int8.net)
    dumped: dict[tuple[str, str], list[Entry]] = {}
    for e in entries:
        if e.layer:
            dumped.setdefault((e.layer, e.role), []).append(e)
    _check_dumped(folder, int8.net, dumped)
    inputs = {e.blob: _read(folder, e, None) for e in entries if not e.layer}
    if not inputs:
        first = next(iter(dumped.values()))[0]
        count = first.shape[0] if first.shape else None
        inputs = some_samples(config, read_model(config), count)
    found: list[Compared] = []
    steps = _reader_steps(int8)

    def watch(
        i: int, layer: Layer, bottoms: Sequence[np.ndarray], tops: Sequence[np.ndarray]
    ) -> None:
        q = int8.layers.get(layer.name)
        for role, names, arrays in (
            ("input", layer.bottoms, bottoms),
            ("output", layer.tops, tops),
        ):
            for entry in dumped.get((layer.name, role), ()):
                ours = arrays[names.index(entry.blob) if entry.blob in names else 0]
                found.append(_compared(folder, entry, layer, ours, q, steps.get(i)))

    int8.forward(inputs, observer=watch)
    return tuple(found)


def _check_dumped(
    folder: Path, net: Net, dumped: Mapping[tuple[str, str], Sequence[Entry]]
) -> None:
    if not dumped:
        raise ConfigError(f"--compare-dump: {folder} holds no array of a layer of this net")
    known = {layer.name for layer in net.layers}
    for layer, _ in dumped:
        if layer not in known:
            raise ConfigError(f"--compare-dump: net '{net.name}' has no layer '{layer}'")


def _reader_steps(int8: Int8Net) -> dict[int, float]:
    """Return, for each layer whose output becomes int8 data, the smallest scale of these.

    Directly, or through layers that bring no two values farther apart.
    """
    net = int8.net
    makers = {v: i for i, link in enumerate(net.links) for v in link.writes}
    steps: dict[int, float] = {}
    for i in reversed(range(len(net.layers))):
        layer, link = net.layers[i], net.links[i]
        step = steps.get(i) if _draws_together(layer) else None
        if layer.name in int8.layers:
            step = int8.layers[layer.name].data.scale
        if step is not None and link.reads[0] in makers:
            maker = makers[link.reads[0]]
            steps[maker] = min(steps.get(maker, step), step)
    return steps


def _draws_together(layer: Layer) -> bool:
    """Whether no two values are farther apart behind a layer than before it."""
    if layer.type == "Pooling":
        return layer.param.pooling_param.pool == PoolingParameter.MAX
    return layer.type in ("ReLU", "ReLU6", "Clip", "Dropout", "Split")


def _compared(
    folder: Path,
    entry: Entry,
    layer: Layer,
    ours: np.ndarray,
    q: QuantizedLayer | None,
    reader: float | None,
) -> Compared:
    """Compare one array; NaN where we have none, or the other way round, is an endless step."""
    if q is not None and entry.role == "input":
        theirs = _read(folder, entry, ours, np.int8)
        if theirs.dtype.kind == "f":  # real values: what would this device make of them
            theirs = kernels.quantize(theirs.astype(np.float32), q.data)
        ours, what = kernels.quantize(ours, q.data), "of its int8 data"
        step: np.ndarray | float = 1.0
    else:
        theirs = _read(folder, entry, ours)
        step, what = _step(ours, q, reader)
    a, b = (x.astype(np.float64) for x in (theirs, ours))
    difference = np.abs(a - b, where=a != b, out=np.zeros(a.shape)) / step
    difference = np.where(np.isnan(a) == np.isnan(b), np.nan_to_num(difference), np.inf)
    differing = int((difference > 0.5).sum())
    worst = float(difference.max(initial=0.0))
    return Compared(
        layer.name, layer.type, entry.role, entry.file, ours.size, differing, worst, what
    )


def _step(
    ours: np.ndarray, q: QuantizedLayer | None, reader: float | None
) -> tuple[np.ndarray | float, str]:
    """Return what a step of a float array is, and how that is called."""
    if reader is not None:
        return reader, "of its reader's data"
    if q is not None:  # one unit of the int32 sums, as far as float32 shows it
        spread = (-1,) + (1,) * (ours.ndim - 2)
        return np.maximum(q.deq_scale.reshape(spread), np.abs(ours) * 2.0**-22), "of its int32 sums"
    largest = float(np.abs(ours[np.isfinite(ours)]).max(initial=0.0))
    return max(_SHARE * largest, 1e-30), f"{_SHARE:g} of the largest"


def _entries(folder: Path, net: Net) -> list[Entry]:
    """Return the arrays of a dump that are of the integer net, or inputs of it."""
    if not folder.is_dir():
        raise ConfigError(f"--compare-dump: {folder} is no folder")
    path = folder / INDEX
    if path.exists():
        try:
            arrays = read_json(path)["arrays"]
            entries = [Entry(**{k: a.get(k) for k in Entry.__dataclass_fields__}) for a in arrays]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CaffeFileError(path, f"is no index of a dump: {error!r}") from None
        return [e for e in entries if e.net in ("", "int8", None)]
    return list(_by_name(folder, net))


def _by_name(folder: Path, net: Net) -> Iterator[Entry]:
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".npy", ".bin"):
            continue
        name = unquote(path.stem)
        if name in net.inputs:
            yield Entry("", "", "", "input", name, path.name, [], "")
            continue
        for role in ("input", "output"):
            if name.endswith(f"_{role}"):
                yield Entry("int8", name[: -len(role) - 1], "", role, "", path.name, [], "")


def _read(
    folder: Path, entry: Entry, ours: np.ndarray | None, kind: type = np.float32
) -> np.ndarray:
    """Read an array of a dump, in our shape where there is one; `kind` is that of bare .bin."""
    path = folder / entry.file
    with reading(path):
        if path.suffix == ".bin":
            array = np.fromfile(path, np.dtype(entry.dtype or kind))
        else:
            array = np.load(path, allow_pickle=False)
    shape = tuple(entry.shape) if entry.shape else (array.shape if ours is None else ours.shape)
    if array.size != int(np.prod(shape)) or (ours is not None and array.size != ours.size):
        wanted = shape if ours is None else ours.shape
        raise CaffeFileError(path, f"holds {array.size} values; {tuple(wanted)} is needed")
    return array.reshape(shape if ours is None else ours.shape)
