"""The config file: TOML, checked by a schema, every path relative to the file.

Names and defaults of the quantization settings are those of the Ascend tool for Caffe.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from pipeline.errors import ConfigError
from pipeline.retrain_config import RetrainConfig
from pipeline.tables import (
    Data,
    DataConfig,
    FilePath,
    Names,
    Number,
    Table,
    TransformConfig,
    as_tuple,
)

__all__ = [
    "Algorithm",
    "CalibrateConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "ModelConfig",
    "OutputConfig",
    "RetrainConfig",
    "TransformConfig",
    "load_config",
]


class ModelConfig(Table):
    """``[model]``: the net and its weights."""

    prototxt: FilePath
    caffemodel: FilePath | None = Field(None, description="left out to train from nothing")
    phase: Literal["TEST", "TRAIN"] = "TEST"


class IfmrQuantize(Table):
    """``ifmr_quantize``: the default search."""

    search_range_start: Number = Field(0.7, gt=0)
    search_range_end: Number = 1.3
    search_step: Number = Field(0.01, gt=0)
    max_percentile: Number = Field(0.999999, gt=0.5, le=1)
    min_percentile: Number = Field(0.999999, gt=0.5, le=1)
    asymmetric: bool | None = None

    @model_validator(mode="after")
    def _ordered(self) -> IfmrQuantize:
        width = self.search_range_end - self.search_range_start
        if width <= 0:
            raise ValueError("search_range_start must be less than search_range_end")
        if self.search_step > width:
            raise ValueError("search_step must be at most search_range_end - search_range_start")
        return self


class HfmgQuantize(Table):
    """``hfmg_quantize``."""

    num_of_bins: Literal[1024, 2048, 4096, 8192] = 4096
    asymmetric: bool | None = None


class MinmaxQuantize(Table):
    """``minmax_quantize``: the whole range."""

    asymmetric: bool | None = None


class PercentileQuantize(Table):
    """``percentile_quantize``: a range that leaves the outermost values out."""

    max_percentile: Number = Field(0.999999, gt=0.5, le=1)
    min_percentile: Number = Field(0.999999, gt=0.5, le=1)
    asymmetric: bool | None = None


class MseQuantize(Table):
    """``mse_quantize``: the range of least squared error."""

    steps: int = Field(100, ge=2)
    asymmetric: bool | None = None


class KlQuantize(Table):
    """``kl_quantize``: the range of least Kullback-Leibler divergence."""

    steps: int = Field(100, ge=2)
    asymmetric: bool | None = None


class ArqQuantize(Table):
    """``arq_quantize``: scales of weights."""

    channel_wise: bool | None = Field(
        None, description="true for Convolution and Deconvolution only; default there: true"
    )


class Algorithm(Table):
    """How to quantize a layer: at most one search for its data, and one for its weights."""

    arq_quantize: ArqQuantize | None = None
    ifmr_quantize: IfmrQuantize | None = None
    hfmg_quantize: HfmgQuantize | None = None
    minmax_quantize: MinmaxQuantize | None = None
    percentile_quantize: PercentileQuantize | None = None
    mse_quantize: MseQuantize | None = None
    kl_quantize: KlQuantize | None = None

    @property
    def data_searches(self) -> dict[str, Table]:
        """The searches that are set, by method name (``"ifmr"``, ...)."""
        names = ("ifmr", "hfmg", "minmax", "percentile", "mse", "kl")
        found = {name: getattr(self, f"{name}_quantize") for name in names}
        return {name: search for name, search in found.items() if search is not None}

    @model_validator(mode="after")
    def _one_search(self) -> Algorithm:
        if len(self.data_searches) > 1:
            both = " and ".join(f"{name}_quantize" for name in self.data_searches)
            raise ValueError(f"{both} exclude each other: keep one")
        return self


class TypeOverride(Algorithm):
    """``[[calibrate.override_layer_types]]``."""

    layer_type: Literal["Convolution", "Deconvolution", "InnerProduct", "Pooling"]


class LayerOverride(Algorithm):
    """``[[calibrate.override_layer_configs]]``."""

    layer_name: str


class CalibrateConfig(Table):
    """``[calibrate]``."""

    data: Data = ()
    batch_num: int = Field(1, ge=1)
    batch_size: int = Field(1, ge=1)
    activation_offset: bool = True
    joint_quant: Literal[False] = False
    skip_layers: Names = ()
    skip_layer_types: Names = ()
    do_fusion: bool = True
    skip_fusion_layers: Names = ()
    exact: bool = Field(False, description="IFMR from a second pass over the data itself")
    common_config: Algorithm = Algorithm()
    override_layer_types: Annotated[tuple[TypeOverride, ...], BeforeValidator(as_tuple)] = ()
    override_layer_configs: Annotated[tuple[LayerOverride, ...], BeforeValidator(as_tuple)] = ()
    quant_cfg: FilePath | None = Field(
        None, description="a simplified config of the Ascend tool, instead of the settings here"
    )


class EvaluateConfig(Table):
    """``[evaluate]``."""

    data: Data
    batch_size: int = Field(8, ge=1)
    batch_num: int | None = Field(None, ge=1, description="default: all there is")
    outputs: Names = Field((), description="blobs to compare; default: the net's outputs")
    layer_samples: int = Field(8, ge=0, description="samples that measure the error of each layer")


class OutputConfig(Table):
    """``[output]``."""

    directory: FilePath = Path("quantized")
    prefix: str = Field("net", pattern=r"^[\w.-]+$")
    overwrite: bool = False


class Config(Table):
    """The whole file."""

    model: ModelConfig
    transform: TransformConfig = TransformConfig()
    calibrate: CalibrateConfig = CalibrateConfig()
    retrain: RetrainConfig | None = None
    evaluate: EvaluateConfig | None = None
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _complete(self) -> Config:
        if self.retrain is None and "calibrate" not in self.model_fields_set:
            raise ValueError("'calibrate' is missing: it says how to quantize")
        if self.retrain is None and self.model.caffemodel is None:
            raise ValueError("'model.caffemodel' is missing: there is nothing to quantize")
        return self


def load_config(path: str | Path, *, retrain: str | Path | None = None) -> Config:
    """Read and check a config file.

    Parameters
    ----------
    path : path-like
    retrain : path-like, optional
        A solver, which takes the place of ``retrain.solver``.

    Returns
    -------
    Config
        With all paths made absolute.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not TOML, or a key or value is wrong: the message
        names the key, what is allowed, and the nearest valid name.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    if retrain is not None:
        table["retrain"] = {**table.get("retrain", {}), "solver": str(Path(retrain).resolve())}
    try:
        config = Config.model_validate(table)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in _explain(error, table))) from None
    return _resolve(config, path.resolve().parent)


def _resolve(value: Any, base: Path) -> Any:
    """Return `value` with every path in it joined to `base`."""
    if isinstance(value, Path):
        return base / value
    if isinstance(value, tuple):
        return tuple(_resolve(v, base) for v in value)
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        changed = {name: _resolve(getattr(value, name), base) for name in fields}
        return value.model_copy(update=changed)
    return value


def _explain(error: ValidationError, table: dict[str, Any]) -> list[str]:
    """Return a line for each key that is wrong."""
    lines: dict[str, str] = {}
    for mistake in error.errors():
        place = _keys(mistake["loc"], table)
        key = ".".join(str(p) for p in place)
        message = mistake["msg"].removeprefix("Value error, ")
        given = "" if isinstance(mistake["input"], dict) else f", not {mistake['input']!r}"
        if mistake["type"] == "extra_forbidden":
            lines[key] = f"unknown key '{key}'{_allowed(place)}"
        elif mistake["type"] == "missing":
            lines[key] = f"'{key}' is missing"
        elif key in lines and (field := _field(place)) is not None and field.description:
            # every type of a union has failed: say what the key is for instead
            lines[key] = f"'{key}' must be: {field.description}{given}"
        else:
            named = f"'{key}': " if key else ""  # none where tables do not go together
            lines[key] = f"{named}{message[0].lower() + message[1:]}{given}"
    return list(lines.values())


def _keys(place: tuple[int | str, ...], table: Any) -> list[int | str]:
    """Return the part of an error's place that the user wrote, without types tried."""
    kept: list[int | str] = []
    for part in place:
        if isinstance(part, int) and not isinstance(table, list):
            continue
        if isinstance(table, list) and not isinstance(part, int):
            break
        if not isinstance(table, dict | list):
            break
        kept.append(part)
        inside = isinstance(part, int) or part in table
        table = table[part] if inside else None  # type: ignore[index]
    return kept


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
