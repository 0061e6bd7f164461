"""The files that a run leaves behind: checked before the work, written all or none."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Collection
from dataclasses import asdict
from functools import partial
from pathlib import Path

import caffeio
from caffeio import Net
from caffeio.record import Record, write_record
from pipeline.config.load import FORMAT_ENDINGS, Config
from pipeline.errors import ConfigError, PipelineError
from pipeline.export import FORMATS
from pipeline.log import log
from pipeline.quantize.export import deploy_net, fakequant_net, node_map
from pipeline.quantize.fuse import Fused
from pipeline.quantize.int8_net import Int8Net
from pipeline.report.csv_table import csv_of
from pipeline.report.page import page_of
from pipeline.report.values import Report, to_json

__all__ = [
    "CONFIG_FILES",
    "MODEL_FILES",
    "Writer",
    "check_output",
    "format_writers",
    "integer_writers",
    "model_files",
    "model_writers",
    "output_files",
    "prefixed_files",
    "prefixed_names",
    "write_files",
    "write_text",
]

#: Writes one file.
Writer = Callable[[Path], None]

#: The files of a quantized model, by kind; the prefix comes before each but the report.
MODEL_FILES = {
    "record": "_record.txt",
    "fakequant_prototxt": "_fake_quant_model.prototxt",
    "fakequant_weights": "_fake_quant_weights.caffemodel",
    "deploy_prototxt": "_deploy_model.prototxt",
    "deploy_weights": "_deploy_weights.caffemodel",
    "node_map": "_quant.json",
    "report": "report.json",
    "layers": "report.csv",
    "page": "report.html",
}

#: The original tool's config, if it is asked for.
CONFIG_FILES = {"json": "_config.json", "cfg": "_quant.cfg"}


def model_files(config: Config) -> dict[str, str]:
    """Return the files of a run: those of `MODEL_FILES`, and others that the config asks for."""
    kind, formats = config.output.write_config, config.output.formats
    more = {name: FORMAT_ENDINGS[name] for name in formats if name in FORMAT_ENDINGS}
    if kind is not None:
        more["original_config"] = CONFIG_FILES[kind]
    return {**MODEL_FILES, **more}


def format_writers(config: Config, int8: Int8Net) -> dict[str, Writer]:
    """Return what writes the other forms that the config asks for."""
    return {
        name: partial(FORMATS[name].write, int8.net, int8.layers)
        for name in config.output.formats
        if name in FORMATS
    }


def check_output(
    config: Config, output: str | Path | None, names: dict[str, str]
) -> dict[str, Path]:
    """Return what would be written; as `output_files`, but nothing is touched."""
    folder = Path(output) if output is not None else config.output.directory
    files = _paths(config, folder, names)
    above = next(p for p in (folder, *folder.parents) if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        code = errno.EACCES if above.is_dir() else errno.ENOTDIR
        code = errno.EEXIST if above == folder and not above.is_dir() else code
        raise PipelineError(f"{folder}: cannot be written: {os.strerror(code)}")
    return files


def output_files(
    config: Config, output: str | Path | None, names: dict[str, str]
) -> dict[str, Path]:
    """Return what will be written, having checked that it may be.

    Parameters
    ----------
    config : Config
    output : path-like or None
        Folder, instead of the config's.
    names : dict of kind to ending
        As `MODEL_FILES`.

    Raises
    ------
    ConfigError
        If a file exists already and must not be overwritten.
    PipelineError
        If the folder cannot be made or written.
    """
    folder = Path(output) if output is not None else config.output.directory
    files = _paths(config, folder, names)
    _writable(folder)
    return files


def _paths(config: Config, folder: Path, names: dict[str, str]) -> dict[str, Path]:
    """Return the files by kind; raise if one is there that must stay."""
    files = {kind: folder / _named(config.output.prefix, end) for kind, end in names.items()}
    existing_paths = [path for path in files.values() if path.exists()]
    if existing_paths and not config.output.overwrite:
        raise ConfigError(
            f"{existing_paths[0]} exists already; set output.overwrite = true, or write to "
            "another folder"
        )
    return files


def _named(prefix: str, ending: str) -> str:
    """Return a file's name: endings that begin with _ follow the prefix, if there is one."""
    if not ending.startswith("_"):
        return ending
    return prefix + ending if prefix else ending[1:]


def prefixed_names(prefix: str) -> dict[str, str]:
    """Return the names of the files of `MODEL_FILES`, by kind."""
    return {kind: _named(prefix, ending) for kind, ending in MODEL_FILES.items()}


def prefixed_files(save_path: str | Path, kinds: Collection[str]) -> dict[str, Path]:
    """Return files of `MODEL_FILES` named as the original tool names them.

    Parameters
    ----------
    save_path : path-like
        Folder and prefix: ``"results/resnet_"`` makes ``results/resnet__deploy_model.prototxt``,
        ``"results/"`` makes ``results/deploy_model.prototxt``.
    kinds : collection of str

    Raises
    ------
    PipelineError
        If the folder cannot be made or written.
    """
    folder, prefix = os.path.split(str(save_path))
    _writable(Path(folder))
    names = prefixed_names(prefix)
    return {kind: Path(folder) / name for kind, name in names.items() if kind in kinds}


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise PipelineError(f"{folder}: cannot be written: {error.strerror}") from None


def model_writers(report: Report, fused: Fused, int8: Int8Net) -> dict[str, Writer]:
    """Return what writes each file of `MODEL_FILES`."""
    text = to_json(report)
    return {
        **integer_writers(report.record, fused, int8),
        "report": lambda path: write_text(path, text),
        "layers": lambda path: write_text(path, csv_of(json.loads(text))),
        "page": lambda path: write_text(path, page_of(json.loads(text))),
    }


def integer_writers(record: Record, fused: Fused, int8: Int8Net) -> dict[str, Writer]:
    """Return what writes a quantized model, by kind; a net is made when it is written."""

    def written(make: Callable, write: Callable[[Net, Path], None]) -> Writer:
        return lambda path: write(make(int8.net, int8.layers), path)

    nodes = [asdict(pair) for pair in node_map(fused, int8.layers)]
    return {
        "record": lambda path: write_record(record, path),
        "fakequant_prototxt": written(fakequant_net, caffeio.write_prototxt),
        "fakequant_weights": written(fakequant_net, caffeio.write_caffemodel),
        "deploy_prototxt": written(deploy_net, caffeio.write_prototxt),
        "deploy_weights": written(deploy_net, caffeio.write_caffemodel),
        "node_map": lambda path: write_text(path, json.dumps({"nodes": nodes}, indent=1) + "\n"),
    }


def write_files(files: dict[str, Path], writers: dict[str, Writer]) -> None:
    """Write all files to a temporary folder, then give each its name: all of them or none."""
    folder = next(iter(files.values())).parent
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
        for kind, path in files.items():
            writers[kind](Path(temporary) / path.name)
        for path in files.values():
            os.replace(Path(temporary) / path.name, path)
            log.info("written: %s", path)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with caffeio.atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
