"""Every key of the config stands in pipeline/README.md, and every file that it names exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from conftest import ROOT
from pydantic import BaseModel

from pipeline.config.load import Config

TEXT = (ROOT / "pipeline" / "README.md").read_text(encoding="utf-8")
READMES = ("README.md", "kernels/README.md", "pipeline/README.md", "caffeio/README.md",
           "bench/README.md")  # fmt: skip


def tables(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from tables(part)


def keys(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield (section, key) for every key of the schema."""
    for name, field in model.model_fields.items():
        inside = list(tables(field.annotation))
        if path:
            yield path[0], name
        for table in inside:
            yield from keys(table, (*path, name))


KEYS = sorted(set(keys(Config, ())))


def section(title: str) -> str:
    """Return the part of the page under a heading such as ``### `[calibrate]` ``, less its code."""
    text = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"^#+ ", text, flags=re.MULTILINE)
    found = [p for p in parts if p.startswith(f"`[{title}]`")]
    assert len(found) == 1, title
    return found[0]


@pytest.mark.parametrize(("table", "key"), KEYS, ids=".".join)
def test_every_key_is_documented(table: str, key: str):
    data = next(p for p in re.split(r"^#+ ", TEXT, flags=re.MULTILINE) if p.startswith("`data`"))
    shared = section("transform") + data + section("calibrate")
    words = re.findall(r"`([^`]+)`", section(table) + shared)
    named = {part for word in words for part in re.split(r"[.\s=]", word)}
    assert key in named, f"[{table}] {key}"


def test_the_tables_are_all_there():
    assert {table for table, _ in KEYS} == set(Config.model_fields)
    assert len(KEYS) > 80


@pytest.mark.parametrize("page", READMES)
def test_every_file_that_a_page_names_exists(page: str):
    folder = (ROOT / page).parent
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert (folder / link).exists(), link
    files = [f"/{p.relative_to(ROOT).as_posix()}" for p in ROOT.rglob("*.*")]
    for name in re.findall(r"`((?:[\w]+/)+[\w.]+\.(?:py|md|toml|proto))`", text):
        assert any(file.endswith(f"/{name}") for file in files), name


@pytest.mark.parametrize("page", READMES)
def test_every_private_name_that_a_page_names_exists(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    for module, name in re.findall(r"`(?:\w+/)*(\w+)\.(_\w+)`", text):
        files = ROOT.glob(f"[kpc]*/**/{module}.py")
        assert any(re.search(rf"\b{name}\b", f.read_text(encoding="utf-8")) for f in files), name
