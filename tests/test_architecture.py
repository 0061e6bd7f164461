"""The rules of the house: who may import whom, and what lies where."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGES = ("kernels", "caffeio", "pipeline")
#: Parts of the CPU backend that are no operations: they have no twin in the reference.
PARTS = {
    "__init__.py", "bins.py", "cache.py", "cell_edges.py", "cells.py", "columns.py", "extremes.py",
    "held.py", "jit.py", "lines.py", "planes.py", "points.py", "programs.py", "threads.py",
}  # fmt: skip
CUDA_PARTS = {"__init__.py", "arrays.py", "block.py", "elementwise.py", "jit.py", "output.py"}
LLVM = ("llvmlite", "numba.extending")


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


ALL = [p for package in PACKAGES for p in files(package)]


def imported(path: Path) -> Iterator[str]:
    """Yield the full name of every module or name that a file imports, wherever it does so."""
    module = path.relative_to(ROOT).with_suffix("").parts
    package = module[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            whole = ".".join(p for p in (base, node.module or "") if p)
            yield from (f"{whole}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            yield from dynamic(node)


def dynamic(node: ast.Call) -> Iterator[str]:
    """Yield the fixed beginning of a name given to import_module or __import__."""
    called = (
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    )
    if called not in ("import_module", "__import__"):
        return
    first = node.args[0]
    if isinstance(first, ast.JoinedStr):
        first = first.values[0]
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        yield first.value


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def offenders(paths: list[Path], *modules: str) -> list[str]:
    return [
        f"{name_of(p)} imports {name}"
        for p in paths
        for name in imported(p)
        if any(within(name, m) for m in modules)
    ]


def test_the_house_has_its_rooms():
    for package in PACKAGES:
        assert len(files(package)) > 5, package


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("kernels", ("caffeio", "pipeline")),
        ("caffeio", ("kernels", "pipeline")),
        ("kernels", ("google", "cv2", "pydantic", "rich", "h5py", "lmdb", "plyvel")),
        ("caffeio", ("numba", "llvmlite", "pydantic", "rich")),
        ("pipeline", ("numba", "llvmlite")),
    ],
)
def test_imports_run_one_way(package: str, forbidden: tuple[str, ...]):
    assert offenders(files(package), *forbidden) == []


def test_nothing_imports_tests_or_benchmarks():
    assert offenders(ALL, "tests", "bench", "conftest", "pytest", "hypothesis") == []


def test_backends_are_reached_through_the_dispatch_alone():
    outside = [
        p
        for p in ALL
        if p.relative_to(ROOT).parts[:2]
        not in (("kernels", "reference"), ("kernels", "cpu"), ("kernels", "cuda"))
    ]
    found = offenders(outside, "kernels.reference", "kernels.cpu")
    assert found == []
    for path in ALL:
        if name_of(path) != "kernels/dispatch.py" and "cuda" not in path.parts:
            assert "kernels.cuda" not in path.read_text(encoding="utf-8"), name_of(path)


def test_backends_do_not_import_each_other():
    for backend in ("reference", "cpu", "cuda"):
        others = [f"kernels.{b}" for b in ("reference", "cpu", "cuda") if b != backend]
        assert offenders(files(f"kernels/{backend}"), *others) == []


def test_numba_stays_in_its_backends():
    outside = [
        p
        for p in ALL
        if p.relative_to(ROOT).parts[:2] not in (("kernels", "cpu"), ("kernels", "cuda"))
    ]
    assert offenders(outside, "numba", "llvmlite") == []


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_one_file_a_backend_speaks_llvm(backend: str):
    speakers = {name_of(p) for p in files(f"kernels/{backend}") if offenders([p], *LLVM)}
    assert len(speakers) <= 1, speakers


def test_one_file_owns_the_options_of_the_compiler():
    for path in files("kernels/cpu"):
        if path.name == "jit.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("njit", "jit", "vectorize"), name_of(path)
            if isinstance(node, ast.keyword):
                assert node.arg != "fastmath", name_of(path)


def test_every_operation_lies_under_the_same_name_on_every_device():
    twins = {p.name for p in files("kernels/reference")} - {"__init__.py", "output.py"}
    for device, parts in (("cpu", PARTS), ("cuda", CUDA_PARTS)):
        here = {p.name for p in (ROOT / "kernels" / device).glob("*.py")}
        assert here - parts == twins, device  # an output stage is no operation


def public(path: Path) -> set[str]:
    """Return the names in ``__all__`` of a file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


@pytest.mark.parametrize(
    "name",
    ["affine", "avg_pool", "conv", "deconv", "histogram", "inner_product", "max_pool", "search"],
)
def test_twins_offer_the_same_operations(name: str):
    one, two = (public(ROOT / "kernels" / b / f"{name}.py") for b in ("reference", "cpu"))
    helpers = {"integral"}  # shared within one backend
    assert one - helpers == two - helpers


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_files_and_functions_are_small(path: Path):
    text = path.read_text(encoding="utf-8")
    if path.name.endswith("_pb2.py"):
        return
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 80, node.name
