"""What a user sees of the package: imports that cost nothing, names, documentation."""

from __future__ import annotations

import inspect
import itertools
import subprocess
import sys

import pytest
from conftest import ROOT

import kernels

FUNCTIONS = [n for n in kernels.__all__ if inspect.isfunction(getattr(kernels, n))]
CLASSES = [n for n in kernels.__all__ if inspect.isclass(getattr(kernels, n))]
METHODS = [
    f"{name}.{method}"
    for name in CLASSES
    for method, value in vars(getattr(kernels, name)).items()
    if inspect.isfunction(value) and not method.startswith("_")
]


def fresh(code: str) -> str:
    """Run code in a new interpreter and return what it writes."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_loads_no_compiler_and_no_heavy_library():
    found = fresh(
        "import sys, kernels\n"
        "heavy = ('numba', 'llvmlite', 'cv2', 'google.protobuf', 'h5py', 'scipy', 'torch')\n"
        "print(*[m for m in heavy if m in sys.modules])"
    )
    assert found == ""


def test_the_reference_device_needs_no_compiler_either():
    found = fresh(
        "import sys, numpy as np, kernels\n"
        "x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)\n"
        "p = kernels.ifmr(x, device='reference')\n"
        "q = kernels.quantize(x, p, device='reference')\n"
        "kernels.conv2d_int8(q, q[:, :, :2, :2], device='reference')\n"
        "hist = kernels.Histogram()\n"
        "hist.update(x, device='reference')\n"
        "[kernels.search_params(hist, m, device='reference') for m in kernels.METHODS]\n"
        "print('numba' in sys.modules)"
    )
    assert found == "False"


def test_importing_starts_no_compilation_of_the_cpu_backend():
    found = fresh(
        "import pkgutil, importlib, kernels.cpu\n"
        "from numba.core.dispatcher import Dispatcher\n"
        "for m in pkgutil.iter_modules(kernels.cpu.__path__):\n"
        "    module = importlib.import_module('kernels.cpu.' + m.name)\n"
        "    for name, value in vars(module).items():\n"
        "        if isinstance(value, Dispatcher) and value.overloads:\n"
        "            print(m.name, name)"
    )
    assert found == ""


def test_every_public_name_exists_once():
    assert len(set(kernels.__all__)) == len(kernels.__all__)
    namespace: dict[str, object] = {}
    exec("from kernels import *", namespace)
    assert set(kernels.__all__) <= set(namespace)
    assert len(FUNCTIONS) > 15
    assert len(CLASSES) > 8


def documented(what: object, section: str) -> bool:
    """Whether a numpydoc section stands in the docstring."""
    lines = (inspect.getdoc(what) or "").splitlines()
    return any(line == section and set(rule) == {"-"} for line, rule in itertools.pairwise(lines))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_documented(name: str):
    function = getattr(kernels, name)
    text = inspect.getdoc(function) or ""
    assert text.split("\n")[0].endswith((".", "``."))
    names = list(inspect.signature(function).parameters)
    if names:
        assert documented(function, "Parameters")
        body = text.split("Parameters\n")[1]
        assert [n for n in names if n not in body] == []


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_documented(name: str):
    cls = getattr(kernels, name)
    text = inspect.getdoc(cls) or ""
    assert len(text.split("\n")[0]) > 20
    if issubclass(cls, Exception) and "__init__" not in vars(cls):
        return
    if "settings" not in name and inspect.signature(cls).parameters:
        simple = {"MinMax", "Percentile", "Mse", "Kl"}  # one sentence says it all
        assert name in simple or documented(cls, "Parameters") or documented(cls, "Attributes")


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_documented(name: str):
    cls, method = name.split(".")
    assert inspect.getdoc(vars(getattr(kernels, cls))[method])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_typed(name: str):
    hints = getattr(kernels, name).__annotations__
    assert "return" in hints
    assert set(inspect.signature(getattr(kernels, name)).parameters) <= set(hints)
