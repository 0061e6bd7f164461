"""What the tables of a config file are made of, and the tables that name data."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from caffeio.data import KINDS
from pipeline.layers.int8 import INT8_TYPES

__all__ = [
    "Data",
    "DataConfig",
    "FilePath",
    "Names",
    "Number",
    "Numbers",
    "Pair",
    "QuantizableType",
    "Table",
    "TransformConfig",
    "as_tuple",
    "no_effect",
]


class Table(BaseModel):
    """A table: unknown keys and wrong types are errors, and it never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def no_effect(table: str, keys: Collection[str], why: str) -> tuple[str, ...]:
    """Say of each key of a table that it does nothing, and why."""
    return tuple(f"{table}.{key} has no effect: {why}" for key in sorted(keys))


def _path(value: Any) -> Any:
    return Path(value) if isinstance(value, str) else value


def as_tuple(value: Any) -> Any:
    """Return a list as a tuple, anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def _float(value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    try:
        return float(value)
    except OverflowError:
        raise ValueError("must be a number that a float can hold") from None


FilePath = Annotated[Path, BeforeValidator(_path)]
Number = Annotated[float, BeforeValidator(_float)]
Numbers = Annotated[tuple[Number, ...], BeforeValidator(as_tuple)]
Pair = Annotated[tuple[int, int], BeforeValidator(as_tuple)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]


def _quantizable(name: str) -> str:
    if name not in INT8_TYPES:
        raise ValueError(f"must be one of {', '.join(map(repr, INT8_TYPES))}")
    return name


#: A layer type that can be quantized.
QuantizableType = Annotated[str, AfterValidator(_quantizable)]


def _positive(values: tuple[float, ...]) -> tuple[float, ...]:
    if not all(value > 0 for value in values):
        raise ValueError("each must be above 0")
    return values


class TransformConfig(Table):
    """``[transform]``: how an image becomes the net's input, ``(x - mean) * scale / std``."""

    resize: int | Pair | None = Field(
        None, description="shorter side, or [height, width] whatever the proportions"
    )
    crop: int | Pair | None = Field(None, description="size of the centre crop")
    channel_order: Literal["BGR", "RGB", "GRAY"] = "BGR"
    mean: Numbers | FilePath | None = Field(None, description="one per channel, or a file")
    scale: Number | Numbers = Field(1.0, description="one number, or one per channel")
    std: Annotated[Numbers, AfterValidator(_positive)] | None = Field(
        None, description="one per channel, above 0, divides"
    )
    transpose: bool = Field(False, description="swap height and width")
    mirror: bool = Field(False, description="in training: half of the images, at random")


def _kind(name: str) -> str:
    kinds = ("auto", *KINDS, "net")
    if name not in kinds:
        raise ValueError(f"must be one of {', '.join(map(repr, kinds))}")
    return name


class DataConfig(Table):
    """``[calibrate.data]``, ``[evaluate.data]``: where samples come from, for one input."""

    source: FilePath | None = Field(None, description="file or folder; left out for kind = 'net'")
    kind: Annotated[str, AfterValidator(_kind)] = Field(
        "auto", description="what lies there; net: what the net's own data layer names"
    )
    input: str | None = Field(None, description="name of the net's input blob")
    color: bool | None = Field(None, description="decode to three channels, or to one")
    root: FilePath | None = Field(None, description="folder that a list's paths start from")
    class_folders: bool = Field(False, description="sub-folders are classes")
    dataset: str | None = Field(None, description="name of the data in HDF5 or .npz")
    label_dataset: str | None = Field(None, description="name of the labels in HDF5 or .npz")
    labels_file: FilePath | None = Field(None, description="idx file of labels")
    order: Literal["BGR", "RGB"] | None = Field(None, description="channels of stored arrays")
    input_shape: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] | None = Field(
        None, description="shape of each .bin file, the batch first"
    )
    data_type: str = Field("float32", description="type of the numbers in .bin files")
    start: int = Field(0, ge=0, description="samples to pass over")
    transform: TransformConfig | None = Field(None, description="instead of [transform]")

    @model_validator(mode="after")
    def _source_or_net(self) -> DataConfig:
        if (self.source is None) != (self.kind == "net"):
            raise ValueError("source is needed, except for kind = 'net', which has none")
        return self


def _inputs(value: Any) -> Any:
    """Take one table, or one for each input."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Data = Annotated[tuple[DataConfig, ...], BeforeValidator(_inputs)]
