"""The examples in docstrings: those of every module run, and the most used functions have some."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from types import ModuleType

import pytest
from conftest import ROOT

import kernels

PACKAGES = ("kernels", "caffeio", "pipeline")

#: What users of `kernels` call most: their documentation shows how.
SHOWN = [
    "ChannelParams", "Histogram", "IfmrPass", "Observer", "OutputStage", "QuantParams", "arq",
    "arq_fake_quantize",
    "avg_pool2d", "avg_pool2d_int8", "conv2d", "conv2d_int8", "conv_output_size", "deconv2d",
    "deconv2d_int8", "deconv_output_size", "dequantize", "dequantize_weights", "fake_quantize",
    "guard_clips", "ifmr", "ifmr_candidates", "inner_product", "inner_product_int8", "max_pool2d",
    "params_from_range", "percentile_range", "pool_output_size", "prepare_conv2d",
    "quantization_error", "quantize", "quantize_weights", "requantize", "search_params",
    "tail_rank", "ulq_backward", "ulq_forward", "ulq_grid",
]  # fmt: skip

#: Modules whose own docstring shows the work with files that a reader has: it is not run.
WITH_FILES = {"caffeio"}


def modules_with_examples() -> list[str]:
    """Return the modules that have examples, by their text: no other need be imported."""
    paths = (p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py")))
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in paths
        if ">>> " in path.read_text(encoding="utf-8")
    ]


def loaded(name: str) -> ModuleType:
    """Import a module; skip the test if that needs an extra which is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").split(".")[0] in PACKAGES:
            raise
        pytest.skip(f"{name} needs an extra: {error}")


def examples_of(module: ModuleType) -> list[doctest.DocTest]:
    """Return the docstrings with examples; those of `kernels` must import what they use."""
    names = {} if module.__name__.split(".")[0] == "kernels" else None
    found = doctest.DocTestFinder(exclude_empty=True).find(module, globs=names)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_show_what_happens(name: str):
    tests = examples_of(loaded(name))
    assert tests, "the finder sees none of the examples"
    runner = doctest.DocTestRunner(verbose=False)
    failures: list[str] = []
    for test in tests:
        for example in test.examples:
            compile(example.source, test.name, "single")  # what is not run must be Python, too
        if test.name not in WITH_FILES:
            runner.run(test, out=failures.append)
    assert not failures, "".join(failures)


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_used_most_has_examples(name: str):
    what = getattr(kernels, name)
    by_name = {test.name: test for test in examples_of(importlib.import_module(what.__module__))}
    assert f"{what.__module__}.{name}" in by_name
    ours = by_name[f"{what.__module__}.{name}"].examples
    assert any(name in example.source for example in ours)
    assert any(example.want for example in ours), "an example shows what comes out"
    assert not any(doctest.SKIP in example.options for example in ours)


def test_the_map_of_the_kernels_names_all_of_them():
    named = set(re.findall(r"(?<!`)`(\w+)`(?!`)", kernels.__doc__ or ""))
    assert named == set(kernels.__all__)


def test_compiled_functions_say_what_they_do():
    compiled = {"jit", "parallel_jit", "kernel", "device_jit"}
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in sorted((ROOT / "kernels").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and any(getattr(d, "id", "") in compiled for d in node.decorator_list)
        and not ast.get_docstring(node)
    ]
    assert silent == []
