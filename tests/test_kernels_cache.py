"""Compiled kernels on disk: kept, found again, and never believed where something is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from io import StringIO
from pathlib import Path

import pytest
from conftest import ROOT
from rich.console import Console

import kernels
from pipeline.report import progress
from pipeline.streams import cache_notes

#: One small kernel; a process says what it computes and whether it was on disk.
TINY = """
import sys
import numpy as np
from kernels import cache_problem
from kernels.cpu.jit import jit

@jit
def total(x):
    s = 0.0
    for v in x:
        s += v
    return s

if __name__ != "__main__":
    for kind in sys.argv[1:]:
        assert total(np.arange(10).astype(kind)) == 45, kind
    stats = total.stats
    print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), cache_problem("cpu"))
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "tiny.py").write_text(TINY, encoding="utf-8")
    return tmp_path


def start(
    folder: Path, code: str = "import tiny", *kinds: str, **variables: str
) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    environment |= {"NUMBA_CACHE_DIR": str(folder / "cache")} | variables
    return subprocess.Popen(
        [sys.executable, "-c", code, *(kinds or ("float32",))],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ended(process: subprocess.Popen) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip(), err


def run(folder: Path, code: str = "import tiny", *kinds: str, **variables: str) -> str:
    """Return how many kernels came from disk, how many were compiled, and what is said."""
    out, err = ended(start(folder, code, *kinds, **variables))
    assert err == ""
    return out


def entries(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "cache").rglob("tiny.*") if p.is_file())


def test_a_kernel_is_compiled_once(tiny: Path):
    assert run(tiny) == "0 1"
    assert len(entries(tiny)) == 1  # no index beside it
    assert run(tiny) == "1 0"
    assert run(tiny, "import tiny", "float32", "float64") == "1 1"
    assert run(tiny, "import tiny", "float32", "float64") == "2 0"


def damages() -> dict[str, object]:
    def flipped(at: float):
        def damage(content: bytes) -> bytes:
            i = int(at * (len(content) - 1))
            return content[:i] + bytes([content[i] ^ 0x10]) + content[i + 1 :]

        return damage

    return {
        "empty": lambda content: b"",
        "a digest alone": lambda content: content[:32],
        "half": lambda content: content[: len(content) // 2],
        "one byte short": lambda content: content[:-1],
        "longer": lambda content: content + b"\0",
        "garbage": lambda content: b"garbage" * 1000,
        "no pickle": lambda content: content[:32] + b"garbage" * 1000,
        **{f"flipped at {at}": flipped(at) for at in (0.1, 0.6)},
    }


@pytest.mark.parametrize("name", damages())
def test_a_damaged_file_is_compiled_again(tiny: Path, name: str):
    run(tiny)
    (file,) = entries(tiny)
    sound = file.read_bytes()
    file.write_bytes(damages()[name](sound))  # type: ignore[operator]
    assert run(tiny) == "0 1"
    assert run(tiny) == "1 0"
    assert entries(tiny) == [file]


def test_files_of_numba_itself_are_not_looked_at(tiny: Path):
    run(tiny)
    (file,) = entries(tiny)
    (file.parent / "tiny.total-7.py311.nbi").write_bytes(b"garbage")
    assert run(tiny) == "1 0"
    file.unlink()
    file.mkdir()  # where nothing can be written, too
    out, err = ended(start(tiny))
    assert out.startswith("0 1 compiled kernels are not kept on disk")
    assert err.count("CacheWarning: compiled kernels are not kept") == 1


@pytest.mark.parametrize("package", ["numba", "numpy"])
def test_kernels_of_other_versions_are_compiled_again(tiny: Path, package: str):
    run(tiny)
    older = f"import numba, {package}; {package}.__version__ = '1.26.0'; import tiny"
    assert run(tiny, older) == "0 1"


def test_what_a_kernel_calls_in_another_module_counts(tmp_path: Path):
    shutil.copytree(
        ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__")
    )
    code = (
        "import numpy as np, kernels\n"
        "from kernels.cpu import affine\n"
        "x = np.array([0.6, 1.2], np.float32)\n"
        "print(kernels.quantize(x, kernels.QuantParams(1.0, 0)).tolist(),\n"
        "    sum(affine._quantize.stats.cache_hits.values()))"
    )
    assert run(tmp_path, code) == "[1, 1] 0"
    assert run(tmp_path, code) == "[1, 1] 1"
    source = tmp_path / "kernels" / "cpu" / "jit.py"
    text = source.read_text(encoding="utf-8")
    changed = text.replace("0.49999997)", "0.3)")
    assert changed != text
    source.write_text(changed, encoding="utf-8")
    assert run(tmp_path, code) == "[0, 1] 0"


#: What the kernel is imported behind, so that no folder takes a file, whoever runs the test.
CLOSED = """
from numba.core import caching
def closed(self):
    raise PermissionError(13, "Permission denied")
caching._CacheLocator.ensure_cache_path = closed
import tiny
"""
#: Files end after 1,000 bytes, as on a full disk.
FULL = """
import resource
import kernels.cpu.jit
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
import tiny
"""


@pytest.mark.parametrize("code", [CLOSED, FULL], ids=["closed", "full"])
def test_where_nothing_can_be_written_kernels_are_compiled_and_it_is_said_once(
    tiny: Path, code: str
):
    out, err = ended(start(tiny, code, "float32", "float64", "int32"))
    assert out.startswith("0 3 compiled kernels are not kept on disk, the next process compiles")
    assert out.endswith("NUMBA_CACHE_DIR can name a folder that may be written")
    assert err.count("CacheWarning: compiled kernels are not kept on disk") == 1
    assert entries(tiny) == []


def test_a_folder_that_can_only_be_read_is_read(tiny: Path):
    run(tiny)
    assert run(tiny, CLOSED) == "1 0"


def test_a_place_that_numba_refuses_is_no_error(tiny: Path):
    out, _ = ended(start(tiny, NUMBA_CACHE_LOCATOR_CLASSES="ZipCacheLocator"))
    assert out.startswith("0 1 compiled kernels are not kept on disk")


def test_without_a_home_no_folder_of_that_name_is_made(tiny: Path):
    homeless = (
        "import os.path\n"
        "os.path.expanduser = lambda path: path\n"
        "from numba.core import caching\n"
        "caching.InTreeCacheLocator.from_function = classmethod(lambda *_: None)\n"
        "import tiny"
    )
    ended(start(tiny, homeless, NUMBA_CACHE_DIR="", XDG_CACHE_HOME=""))
    assert not (tiny / "~").exists()


def test_processes_that_fill_one_folder_at_once_are_all_right(tiny: Path):
    kinds = ("float32", "float64", "int32", "int8")
    together = [start(tiny, "import tiny", kind, "int64") for kind in kinds]
    for process in together:
        out, err = ended(process)
        assert err == ""
        assert sum(map(int, out.split())) == 2  # kernels of the others may be there already
    assert run(tiny, "import tiny", *kinds, "int64") == "5 0"
    assert all(p.suffix == ".nbc" for p in entries(tiny))


def test_without_the_compiler_the_cpu_says_what_it_needs(tiny: Path):
    code = (
        "import numpy as np, kernels\n"
        "x, p = np.ones(3, np.float32), kernels.QuantParams(0.5, 0)\n"
        "for use in (lambda: kernels.on_compile('cpu', print), lambda: kernels.quantize(x, p)):\n"
        "    try:\n"
        "        use()\n"
        "    except kernels.DeviceError as error:\n"
        "        print(error)\n"
        "print(kernels.quantize(x, p, device='reference').tolist())"
    )
    first, second, result = run(tiny, code, NUMBA_DISABLE_JIT="1").splitlines()
    assert first == second
    assert "device 'cpu' needs numba" in first
    assert "choose device 'reference'" in first
    assert result == "[2, 2, 2]"


def test_a_run_shows_it_as_a_note(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    with cache_notes(lambda line: print(line, file=sys.stderr)), warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("no room", kernels.CacheWarning, stacklevel=1)
    assert capsys.readouterr().err == "note: no room\n"
    with cache_notes(None), warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("no room at all", kernels.CacheWarning, stacklevel=1)
    assert capsys.readouterr().err == ""
    with cache_notes(None), pytest.warns(UserWarning, match="another"):
        warnings.warn("another", UserWarning, stacklevel=1)
    for problem, promised in (("", True), ("no room", False)):
        monkeypatch.setattr(progress, "cache_problem", lambda device, problem=problem: problem)
        shown = StringIO()
        reporter = progress.Reporter(console=Console(file=shown))
        monkeypatch.setattr(progress, "on_compile", lambda device, found: _OneKernel(found))
        with reporter.compiling("cpu"):
            pass
        assert ("the next run has them" in shown.getvalue()) == promised


class _OneKernel:
    """As `kernels.on_compile` where one kernel is compiled."""

    def __init__(self, found: object) -> None:
        self.found = found

    def __enter__(self) -> None:
        self.found("kernel", 1, 0.0)  # type: ignore[operator]
        self.found("", 1, 2.0)  # type: ignore[operator]

    def __exit__(self, *_: object) -> None:
        pass


def test_what_was_called_before_does_not_make_a_kernel_stale():
    """A program that counts first and one that convolves first use the same files."""
    code = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(f"kernels.cpu.{name}")
from kernels.cpu.cache import _stamp
print([_stamp(f"kernels.cpu.{name}") for name in ("planes", "columns", "engine.layout", "ifmr")])
"""
    names = ["conv", "histogram", "ifmr", "programs", "search"]
    found = {
        subprocess.run(
            [sys.executable, "-c", code, *order], cwd=ROOT, capture_output=True, check=True
        ).stdout
        for order in (names, names[::-1], names[2:] + names[:2])
    }
    assert len(found) == 1
