"""The files that a run leaves behind: their names, checked before the work, and what is in them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import caffeio
from caffeio import Net
from caffeio.record import Record, write_record
from pipeline.config.load import FORMAT_ENDINGS, Config
from pipeline.errors import ConfigError, PipelineError
from pipeline.export import FORMATS
from pipeline.jobs.writing import NO_FOLDER, VIEWS, Writer, held_folder
from pipeline.manifest import digests
from pipeline.quantize.export import deploy_net, fakequant_net, node_map
from pipeline.quantize.fuse import Fused
from pipeline.quantize.int8_net import Int8Net
from pipeline.report.csv_table import csv_of
from pipeline.report.page import page_of
from pipeline.report.values import Report, to_json

__all__ = [
    "CONFIG_FILES",
    "MODEL_FILES",
    "check_output",
    "format_writers",
    "integer_writers",
    "model_files",
    "model_writers",
    "output_files",
    "prefixed_files",
    "prefixed_names",
    "write_text",
]

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
    "manifest": "_manifest.json",
}

#: Kinds that are written after all others.
_LAST = ("report", "manifest")

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
    if above == folder and not above.is_dir():
        raise PipelineError(f"{folder}: {NO_FOLDER}")
    if not above.is_dir() or not os.access(above, os.W_OK):
        code = errno.EACCES if above.is_dir() else errno.ENOTDIR
        raise PipelineError(f"{folder}: cannot be written: {os.strerror(code)}")
    return files


@contextmanager
def output_files(
    config: Config, output: str | Path | None, names: Mapping[str, str], *, held: bool = True
) -> Iterator[dict[str, Path]]:
    """Hold the folder that a run writes to, and yield what will be written.

    Parameters
    ----------
    config : Config
    output : path-like or None
        Folder, instead of the config's.
    names : mapping of kind to ending
        As `MODEL_FILES`.
    held : bool
        False: nothing is held, for a process that writes nothing.

    Raises
    ------
    ConfigError
        If a file exists already and must not be overwritten.
    PipelineError
        If the folder cannot be made or written, or another run writes to it.
    """
    folder = Path(output) if output is not None else config.output.directory
    files = _paths(config, folder, names)
    with held_folder(folder) if held else nullcontext():
        yield files


def _paths(config: Config, folder: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """Return the files by kind; raise if one is there that must stay."""
    ordered = sorted(names.items(), key=lambda item: item[0] in _LAST)
    files = {kind: folder / _named(config.output.prefix, end) for kind, end in ordered}
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
    """
    folder, prefix = os.path.split(str(save_path))
    names = prefixed_names(prefix)
    return {kind: Path(folder) / name for kind, name in names.items() if kind in kinds}


def model_writers(report: Report, fused: Fused, int8: Int8Net) -> dict[str, Writer]:
    """Return what writes each file of `MODEL_FILES`."""
    text = to_json(report)
    others = [p.name for kind, p in report.files.items() if kind not in (*VIEWS, "manifest")]

    def write_report(path: Path) -> None:
        whole = {**json.loads(text), "digests": digests(path.with_name(name) for name in others)}
        write_text(path, json.dumps(whole, indent=1) + "\n")

    return {
        **integer_writers(report.record, fused, int8),
        "report": write_report,
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


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; bytes of file names that are no UTF-8 as escapes."""
    with caffeio.atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
