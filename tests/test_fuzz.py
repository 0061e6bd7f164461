"""A short run of the fuzzer on every reader; `python -m tests.fuzz` runs it for long."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.fuzz import harness
from tests.fuzz.harness import CORPUS, Finding, findings, tried
from tests.fuzz.targets import TARGETS, names

#: The readers of whole databases take longest.
INPUTS = {"leveldb": 60, "shapes": 150, "image": 150}


@pytest.mark.parametrize("name", [*TARGETS])
def test_damaged_inputs_are_read_or_refused(name, tmp_path, capfd):
    if name not in set(names()):
        pytest.skip("its library is not installed")
    found = [*findings(name, tmp_path, seed=1, inputs=INPUTS.get(name, 300))]
    assert [f.what for f in found if isinstance(f, Finding)] == []
    assert found[-1] == INPUTS.get(name, 300)


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda p: p.name)
def test_inputs_that_once_failed_are_read_or_refused(path, tmp_path):
    target = TARGETS[path.name.partition("-")[0]]
    for name, content in target.beside.items():
        (tmp_path / name).write_bytes(content)
    file = tmp_path / target.file
    file.write_bytes(path.read_bytes())
    assert tried(target.read, file) in ("read", "refused")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("x"), "KeyError at test_fuzz.py"),
        (ValueError("y" * 10), "ValueError at test_fuzz.py"),
        (RecursionError(), "RecursionError at test_fuzz.py"),
    ],
)
def test_a_foreign_exception_is_a_finding(error, said, tmp_path):
    def read(path):
        raise error

    assert tried(read, tmp_path).startswith(said)


def test_memory_is_a_finding(tmp_path, monkeypatch):
    grown = iter([0, 3 << 20])
    monkeypatch.setattr(harness, "peak_memory", lambda: next(grown))
    monkeypatch.setattr(harness, "MOST_BYTES", 2 << 20)
    assert tried(lambda path: None, tmp_path) == "3 MiB"
