"""What the compiler makes of the CUDA kernels, without a device: no spills, no fused rounding."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import types
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from cuda_signatures import FLOAT_SUMS, SIGNATURES, signature
from cuda_simulator import SIMULATED

KERNELS = [(module, name) for module, found in SIGNATURES.items() for name in found]
CAPABILITIES = [(8, 0), (9, 0)]


def decorated(path: Path) -> set[str]:
    """Return the names of the kernels of a file."""
    return {
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        and any(getattr(d, "id", "") == "kernel" for d in node.decorator_list)
    }


def test_no_kernel_is_missing():
    folder = ROOT / "kernels" / "cuda"
    found = {
        ".".join(p.relative_to(folder).with_suffix("").parts): decorated(p)
        for p in sorted(folder.rglob("*.py"))
    }
    assert {m: names for m, names in found.items() if names} == {
        m: set(table) for m, table in SIGNATURES.items()
    }


@cache
def compiler() -> Any:
    """Return numba-cuda's module and the dispatcher, whose device tests replace."""
    if SIMULATED:
        pytest.skip("the simulator compiles nothing")
    pytest.importorskip("numba_cuda", reason="needs numba-cuda")
    if importlib.util.find_spec("nvidia") is None:
        pytest.skip("needs the CUDA compiler: pip install 'caffe-quant[cuda]'")
    from numba import cuda
    from numba.cuda import dispatcher

    return cuda, dispatcher


@pytest.fixture(params=CAPABILITIES, ids=lambda c: f"cc{c[0]}{c[1]}")
def capability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """A compute capability; the compiler takes it for the current device's."""
    device = types.SimpleNamespace(compute_capability=request.param)
    monkeypatch.setattr(compiler()[1], "get_current_device", lambda: device)
    return request.param


@pytest.mark.filterwarnings("ignore::Warning:numba")
@pytest.mark.parametrize(("module", "name"), KERNELS, ids=lambda v: v)
def test_kernels_compile_without_spills_and_round_each_step(module, name, capability):
    function = getattr(importlib.import_module(f"kernels.cuda.{module}"), name).py_func
    ptx, _ = compiler()[0].compile(
        function, signature(module, name), cc=capability, abi="numba", device=False
    )
    assert f".target sm_{capability[0]}{capability[1]}" in ptx
    assert re.findall(r"^.*\.local\b.*$", ptx, re.MULTILINE) == []
    if (module, name) not in FLOAT_SUMS:
        assert re.findall(r"^.*\bfma\.\w+\.(?:ftz\.)?f32\b.*$", ptx, re.MULTILINE) == []
        assert re.findall(r"^.*\.approx\.(?:ftz\.)?f32\b.*$", ptx, re.MULTILINE) == []
    shared = sum(int(n) for n in re.findall(r"\.shared [^;]*\[(\d+)\];", ptx))
    assert shared <= 48 << 10
    assert all(found == "0" for found in spills(ptx, capability))


def spills(ptx: str, capability: tuple[int, int]) -> list[str]:
    """Return how many bytes of registers the assembler spilled, where it is installed."""
    try:
        from cuda.bindings import nvjitlink
    except ImportError:
        return []
    link = nvjitlink.create(2, [f"-arch=sm_{capability[0]}{capability[1]}", "-verbose"])
    try:
        code = ptx.encode()
        nvjitlink.add_data(link, nvjitlink.InputType.PTX, code, len(code), "kernel")
        nvjitlink.complete(link)
        log = bytearray(nvjitlink.get_info_log_size(link))
        nvjitlink.get_info_log(link, log)
    finally:
        nvjitlink.destroy(link)
    found = re.findall(r"(\d+) bytes spill", log.decode())
    assert found
    return found


@pytest.mark.filterwarnings("ignore::Warning:numba")
@pytest.mark.parametrize(
    ("module", "name", "instruction"),
    [
        ("gemm.tiles", "dp4a_tiles", r"dp4a\.s32\.s32 "),
        ("gemm.mma", "mma_tiles", r"mma\.sync\.aligned\.m16n8k32\.row\.col\.s32\.s8\.s8\.s32 "),
        ("gemm.tiles", "float_tiles", r"ld\.shared\.v4\.f32"),
    ],
)
def test_kernels_use_the_instructions_they_are_named_for(module, name, instruction, capability):
    function = getattr(importlib.import_module(f"kernels.cuda.{module}"), name).py_func
    given = signature(module, name)
    ptx, _ = compiler()[0].compile(function, given, cc=capability, abi="numba", device=False)
    assert re.search(instruction, ptx)
