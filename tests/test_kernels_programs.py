"""The typed face of compiled programs and the engine's own classes have the same methods."""

from __future__ import annotations

import inspect

import pytest

import kernels
from kernels import programs

ENGINE = kernels.packed("cpu")
PAIRS = [
    ("Builder", ENGINE.Builder),
    ("Image", ENGINE.Image),
    ("Instance", ENGINE.Instance),
    ("Program", ENGINE.Program),
    ("PackedLayer", ENGINE.ConvWeights),
    ("PackedLayer", ENGINE.DeconvWeights),
    ("_ConvWeights", ENGINE.ConvWeights),
    ("_DeconvWeights", ENGINE.DeconvWeights),
    ("MicroKernel", ENGINE.MicroKernel),
]


def members(face: type) -> list[str]:
    own = [n for n in vars(face) if not n.startswith("_") or n == "pack"]
    return [*own, *face.__annotations__] if hasattr(face, "__annotations__") else own


def parameters(function: object) -> list[tuple[str, object]]:
    return [
        (p.name, p.default)
        for p in inspect.signature(function).parameters.values()  # type: ignore[arg-type]
        if p.name not in ("self", "cls")
    ]


@pytest.mark.parametrize(
    ("face", "own"), PAIRS, ids=lambda value: getattr(value, "__name__", value)
)
def test_methods_take_the_same(face: str, own: type):
    faced = getattr(programs, face)
    names = members(faced)
    assert names
    for name in names:
        if inspect.isfunction(vars(faced)[name]):
            assert parameters(getattr(own, name)) == parameters(vars(faced)[name]), name
        else:
            fields = getattr(own, "__dataclass_fields__", {})
            assert name in fields or hasattr(own, name), name


def test_the_engine_has_what_its_face_says():
    for name, member in vars(programs.Engine).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            assert parameters(getattr(ENGINE, name)) == parameters(member), name
    for name in programs.Engine.__annotations__:
        assert hasattr(ENGINE, name)
    assert issubclass(ENGINE.NanError, programs.StepError)


def test_only_the_cpu_has_one():
    assert kernels.packed("reference") is None
