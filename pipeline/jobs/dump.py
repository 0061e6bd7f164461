"""What layers read and write, in files: ``--dump``."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np

import kernels
from caffeio import Layer, Net
from pipeline import __version__
from pipeline.config.load import Config, load_config
from pipeline.errors import ConfigError, PipelineError
from pipeline.jobs.data import evaluation_feed
from pipeline.jobs.files import prefixed_names
from pipeline.jobs.unknown import names_unknown_fields
from pipeline.jobs.writing import write_folder
from pipeline.layers.int8 import QuantizedLayer
from pipeline.quantize.export import fakequant_net
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.load import load_quantized
from pipeline.quantize.prepare import prepare, read_model
from pipeline.report.progress import Reporter
from pipeline.runtime.executor import FloatNet
from pipeline.runtime.loop import Observer

__all__ = ["INDEX", "Entry", "dump_model", "quantized_net", "some_samples"]

INDEX = "index.json"


@dataclass(frozen=True)
class Entry:
    """One array of a dump.

    Attributes
    ----------
    net : str
        "float", "fakequant" or "int8"; empty for the net's inputs.
    layer, type, role, blob : str
        ``"input"`` or ``"output"`` of a layer; an input of the net has no layer.
    file : str
        Within the dump: .npy, or .bin of the numbers alone.
    shape : list of int
    dtype : str
    scale, offset : float, int or None
        Of int8 values: ``(value - offset) * scale``.
    """

    net: str
    layer: str
    type: str
    role: str
    blob: str
    file: str
    shape: list[int]
    dtype: str
    scale: float | None = None
    offset: int | None = None


@names_unknown_fields
def dump_model(
    config: str | Path | Config,
    folder: str | Path,
    *,
    layers: Collection[str] = (),
    samples: int | None = None,
    output: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Write what the layers of the float, fakequant and integer nets read and write.

    The quantized model is the one that a run of this config has written.

    Parameters
    ----------
    config : path-like or Config
    folder : path-like
        To be made: ``index.json``, the net's inputs, and a folder of .npy for each net.
    layers : collection of str
        Only these; by default all.
    samples : int, optional
        Of the evaluation data; by default one batch of it.
    output : path-like, optional
        Where the run wrote to, instead of the config's folder.
    reporter : Reporter, optional

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ConfigError
        If the folder is there already, the model is not, or a layer is named that no net has.
    PipelineError, caffeio.CaffeFileError, caffeio.NetError
        If the work cannot be done. Nothing has been written then.
    """
    config = config if isinstance(config, Config) else load_config(config)
    reporter, folder = reporter or Reporter(quiet=True), Path(folder)
    if folder.exists():
        raise ConfigError(f"--dump: {folder} exists already; name a new folder")
    net = read_model(config)
    int8 = quantized_net(config, output)
    nets: dict[str, FloatNet | Int8Net] = {
        "float": FloatNet(net),
        "fakequant": FloatNet(fakequant_net(int8.net, int8.layers)),
        "int8": int8,
    }
    _check_layers(layers, [n.net for n in nets.values()])
    inputs = some_samples(config, net, samples)

    def write(place: Path) -> None:
        entries = [_write(place, _input_entry(b), x) for b, x in inputs.items()]
        for name, runner in reporter.track(nets.items(), "dump", len(nets), "nets"):
            numbers = int8.layers if name == "int8" else {}
            runner.forward(inputs, observer=_writer(place, name, layers, numbers, entries))
        index = {
            "version": 1,
            "made_by": f"caffe-quant {__version__}",
            "samples": len(next(iter(inputs.values()))),
            "arrays": [asdict(e) for e in entries],
        }
        (place / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")

    write_folder(folder, write)
    return folder


def _input_entry(blob: str) -> Entry:
    return Entry("", "", "", "input", blob, f"{quote(blob, safe='')}.npy", [], "")


def quantized_net(config: Config, output: str | Path | None) -> Int8Net:
    """Read the deploy model of the config's run."""
    folder = Path(output) if output is not None else config.output.directory
    names = prefixed_names(config.output.prefix)
    paths = [folder / names[kind] for kind in ("deploy_prototxt", "deploy_weights")]
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path} is not there: run the config first, it writes the model")
    return load_quantized(*paths)


def _check_layers(layers: Collection[str], nets: Sequence[Net]) -> None:
    known = {layer.name for net in nets for layer in net.layers}
    for name in layers:
        if name not in known:
            raise ConfigError(f"--dump-layers: there is no layer '{name}'")


def some_samples(config: Config, net: Net, count: int | None) -> dict[str, np.ndarray]:
    """Read some of the evaluation samples."""
    feed = evaluation_feed(config, prepare(config.model_copy(update={"retrain": None}), net))
    try:
        if not len(feed):
            raise PipelineError("evaluate.data holds no samples from 'start' on")
        size = count or (config.evaluate.batch_size if config.evaluate else 1)
        return feed.for_net(next(feed.batches(min(size, len(feed)), 1)))
    finally:
        feed.close()


def _write(folder: Path, entry: Entry, array: np.ndarray) -> Entry:
    path = folder / entry.file
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.ascontiguousarray(array))
    whole = {**asdict(entry), "shape": list(array.shape), "dtype": str(array.dtype)}
    return Entry(**whole)


def _writer(
    folder: Path,
    net: str,
    layers: Collection[str],
    numbers: Mapping[str, QuantizedLayer],
    entries: list[Entry],
) -> Observer:
    """Return an observer that writes the arrays of each layer as it runs."""

    def watch(
        i: int, layer: Layer, bottoms: Sequence[np.ndarray], tops: Sequence[np.ndarray]
    ) -> None:
        if layers and layer.name not in layers:
            return
        q = numbers.get(layer.name)
        for role, names, arrays in (
            ("input", layer.bottoms, bottoms),
            ("output", layer.tops, tops),
        ):
            for k, (blob, x) in enumerate(zip(names, arrays, strict=False)):
                more = f"_{k}" if k else ""
                file = f"{net}/{i:03}_{quote(layer.name, safe='')}_{role}{more}.npy"
                entry = Entry(net, layer.name, layer.type, role, blob, file, [], "")
                if q is None or role == "output":
                    entries.append(_write(folder, entry, x))
                    continue
                entry = replace(entry, scale=q.data.scale, offset=q.data.offset)
                entries.append(_write(folder, entry, kernels.quantize(x, q.data)))

    return watch
