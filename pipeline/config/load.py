"""The config file: TOML, checked by a schema, every path relative to the file."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from pipeline.config.amct import with_retrain_cfg
from pipeline.config.base import Data, FilePath, Names, Table, TransformConfig
from pipeline.config.calibrate import CalibrateConfig
from pipeline.config.decompose import DecomposeConfig
from pipeline.config.fallback import FallbackConfig
from pipeline.config.improve import ImproveConfig
from pipeline.config.nuq import NuqConfig
from pipeline.config.record import RecordConfig
from pipeline.config.retrain import RetrainConfig
from pipeline.errors import ConfigError

__all__ = [
    "FORMAT_ENDINGS",
    "Config",
    "EvaluateConfig",
    "ModelConfig",
    "OutputConfig",
    "load_config",
]

#: A key of 64 parts, a.b.c and so on.
_LONG_KEY = re.compile(r"""(?<![\w.'"-])(?:[\w'"-]++[ \t]*+\.[ \t]*+){64}""")


class ModelConfig(Table):
    """``[model]``: the net and its weights."""

    prototxt: FilePath
    caffemodel: FilePath | None = Field(None, description="left out to train from nothing")
    phase: Literal["TEST", "TRAIN"] = "TEST"
    layers: FilePath | None = Field(None, description="a Python file with layer types of your own")
    outputs: Names = Field((), description="blobs that the net ends with; default: all")
    depthwise_as_convolution: bool = Field(
        False, description="take depthwise types of forks as Convolution, which is quantized"
    )


class EvaluateConfig(Table):
    """``[evaluate]``."""

    data: Data
    batch_size: int = Field(8, ge=1)
    batch_num: int | None = Field(None, ge=1, description="default: all there is")
    outputs: Names = Field((), description="blobs to compare; default: the net's outputs")
    evaluator: Literal["map-voc", "map-coco", "miou", "psnr"] | FilePath | None = Field(
        None, description="'map-voc', 'map-coco', 'miou', 'psnr', or a Python file"
    )
    options: dict[str, Any] = Field({}, description="what the evaluator is made with")
    boxes: FilePath | None = Field(None, description="list of true boxes, for mAP")
    layer_samples: int = Field(8, ge=0, description="samples that measure the error of each layer")


#: Other forms of a model, and the endings of their files; "ascend" is always written.
FORMAT_ENDINGS = {
    "onnx": "_int8.onnx",
    "ncnn": "_ncnn.table",
    "tensorrt": "_tensorrt.cache",
    "npz": "_int8.npz",
}


class OutputConfig(Table):
    """``[output]``."""

    directory: FilePath = Path("quantized")
    prefix: str = Field("net", pattern=r"^[\w.-]*$")
    overwrite: bool = False
    formats: Names = Field(
        (), description="other forms of the model to write: 'onnx', 'ncnn', 'tensorrt', 'npz'"
    )
    write_config: Literal["json", "cfg"] | None = Field(
        None, description="write the settings as the Ascend tool's config.json or .cfg, too"
    )

    sensitivity: bool = Field(
        False, description="measure what the whole net loses by each layer alone, for the report"
    )

    @model_validator(mode="after")
    def _known_formats(self) -> OutputConfig:
        for name in self.formats:
            if name not in ("ascend", *FORMAT_ENDINGS):
                names = ", ".join(map(repr, ("ascend", *FORMAT_ENDINGS)))
                raise ValueError(f"formats: '{name}' is none of {names}")
        return self


class Config(Table):
    """The whole file."""

    model: ModelConfig
    transform: TransformConfig = TransformConfig()
    calibrate: CalibrateConfig = CalibrateConfig()
    improve: ImproveConfig = ImproveConfig()
    fallback: FallbackConfig | None = None
    nuq: NuqConfig | None = None
    decompose: DecomposeConfig | None = None
    record: RecordConfig | None = None
    retrain: RetrainConfig | None = None
    evaluate: EvaluateConfig | None = None
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _complete(self) -> Config:
        if self.record is not None:
            for other in ("retrain", "fallback", "nuq"):
                if getattr(self, other) is not None:
                    raise ValueError(f"'record' and '{other}' exclude each other: keep one")
            if self.output.write_config is not None:
                raise ValueError("output.write_config: a record holds no settings to write")
        elif self.retrain is None and "calibrate" not in self.model_fields_set:
            raise ValueError("'calibrate' is missing: it says how to quantize")
        if self.output.sensitivity and not self.calibrate.data:
            raise ValueError("output.sensitivity: name the samples to measure on, calibrate.data")
        if self.retrain is None and self.model.caffemodel is None:
            raise ValueError("'model.caffemodel' is missing: there is nothing to quantize")
        return self


def load_config(
    path: str | Path,
    *,
    retrain: str | Path | None = None,
    record: str | Path | None = None,
) -> Config:
    """Read and check a config file.

    Parameters
    ----------
    path : path-like
    retrain : path-like, optional
        A solver, which takes the place of ``retrain.solver``.
    record : path-like, optional
        A record, which takes the place of ``record.file``.

    Returns
    -------
    Config
        With all paths made absolute.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not TOML, or a key or value is wrong: the message
        names the key, what is allowed, and the nearest valid name.
    caffeio.CaffeFileError
        If ``retrain.quant_cfg`` cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        if _LONG_KEY.search(text):  # takes tomllib minutes
            raise ConfigError(f"{path}: is not TOML that can be read: a key has too many parts")
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is not TOML that can be read: it is nested too deep") from None
    except ValueError as error:  # no TOML, not UTF-8, or a number of thousands of digits
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    if retrain is not None:
        table["retrain"] = {**table.get("retrain", {}), "solver": str(Path(retrain).resolve())}
    if record is not None:
        table["record"] = {**table.get("record", {}), "file": str(Path(record).resolve())}
    try:
        config = Config.model_validate(table)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in _explain(error, table))) from None
    config = _resolve(config, path.resolve().parent)
    if config.retrain is None:
        return config
    return config.model_copy(update={"retrain": with_retrain_cfg(config.retrain)})


def _resolve(value: Any, base: Path) -> Any:
    """Return `value` with every path in it joined to `base`."""
    if isinstance(value, Path):
        return base / _expanded(value)
    if isinstance(value, tuple):
        return tuple(_resolve(v, base) for v in value)
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        resolved = {name: _resolve(v, base) for name, v in fields.items()}
        # what is copied counts as given: only what has changed
        changed = {name: v for name, v in resolved.items() if v != fields[name]}
        return value.model_copy(update=changed)
    return value


def _expanded(path: Path) -> Path:
    """Return a path with ~ and ~name as the home folders that they stand for."""
    try:
        return path.expanduser()
    except RuntimeError:  # nobody of that name
        return path


def _explain(error: ValidationError, table: dict[str, Any]) -> list[str]:
    """Return a line for each key that is wrong."""
    lines: dict[str, str] = {}
    for mistake in error.errors():
        place = _keys(mistake["loc"], table)
        key = ".".join(str(p) for p in place)
        message = mistake["msg"].removeprefix("Value error, ")
        but_got = "" if isinstance(mistake["input"], dict) else f", not {mistake['input']!r}"
        if mistake["type"] == "extra_forbidden":
            lines[key] = f"unknown key '{key}'{_allowed(place)}"
        elif mistake["type"] == "missing":
            lines[key] = f"'{key}' is missing"
        elif key in lines and (field := _field(place)) is not None and field.description:
            # every type of a union has failed: say what the key is for instead
            lines[key] = f"'{key}' must be: {field.description}{but_got}"
        else:
            named = f"'{key}': " if key else ""  # no key: an error between several tables
            lines[key] = f"{named}{message[0].lower() + message[1:]}{but_got}"
    return list(lines.values())


def _keys(place: tuple[int | str, ...], table: Any) -> list[int | str]:
    """Return the keys in an error's location, without the union types that pydantic tried."""
    keys: list[int | str] = []
    for part in place:
        if isinstance(part, int) and not isinstance(table, list):
            continue
        if isinstance(table, list) and not isinstance(part, int):
            break
        if not isinstance(table, dict | list):
            break
        keys.append(part)
        inside = isinstance(part, int) or part in table
        table = table[part] if inside else None  # type: ignore[index]
    return keys


def _field(place: list[int | str]) -> FieldInfo | None:
    """Return the schema's field for a key, if it has one."""
    model: Any = Config
    field = None
    for part in place:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        if field is None:
            return None
        try:
            model = _table_of(field.annotation)
        except TypeError:
            return field
    return field


def _allowed(place: list[Any]) -> str:
    """Return the nearest name and all names allowed where an unknown key stands."""
    above = _field([p for p in place[:-1] if isinstance(p, str)])
    model = _table_of(above.annotation) if above else Config
    names = sorted(model.model_fields)
    near = difflib.get_close_matches(str(place[-1]), names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"{hint} (allowed: {', '.join(names)})"


def _table_of(annotation: Any) -> type[BaseModel]:
    """Return the table class within an annotation such as ``tuple[X, ...] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        try:
            return _table_of(part)
        except TypeError:
            continue
    raise TypeError(f"{annotation} holds no table")
