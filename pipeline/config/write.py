"""Writing tables of a config as TOML: the keys that differ from their defaults, in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.config.base import Table

__all__ = ["table_lines", "toml_value"]


def toml_value(value: Any) -> str:
    """Return a value as TOML: text, a number, a bool, or a list or table of them.

    Examples
    --------
    >>> toml_value({"search_step": 0.01, "names": ["a"]})
    '{ search_step = 0.01, names = ["a"] }'
    """
    if isinstance(value, dict):
        inside = ", ".join(f"{_key(key)} = {toml_value(v)}" for key, v in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    # JSON's escapes are among TOML's, but for one character
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    plain = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if plain else toml_value(key)


def _settings(table: Table) -> dict[str, Any]:
    """Return what a table sets, without defaults; a table within is there if it was given."""
    out: dict[str, Any] = {}
    for name, field in type(table).model_fields.items():
        value = getattr(table, name)
        if value == field.get_default(call_default_factory=True):
            continue
        if isinstance(value, Table):
            value = _settings(value)
        elif isinstance(value, Path):
            value = str(value)
        elif isinstance(value, tuple):
            value = [_settings(v) if isinstance(v, Table) else v for v in value]
        out[name] = value
    return out


def table_lines(name: str, table: Table) -> list[str]:
    """Return the lines of a table; tables and lists of tables within follow as their own.

    Parameters
    ----------
    name : str
        As in the brackets: ``"calibrate"``.
    table : Table
    """
    settings = _settings(table)
    inner = {k: v for k, v in settings.items() if isinstance(v, dict)}
    lists = {k: v for k, v in settings.items() if isinstance(v, list) and _tables(v)}
    lines = [f"[{name}]"]
    lines += [
        f"{key} = {toml_value(v)}"
        for key, v in settings.items()
        if key not in inner and key not in lists
    ]
    for key, value in inner.items():
        lines += ["", f"[{name}.{key}]", *(f"{k} = {toml_value(v)}" for k, v in value.items())]
    for key, tables in lists.items():
        for value in tables:
            named = sorted(value.items(), key=lambda item: not item[0].startswith("layer_"))
            entries = (f"{k} = {toml_value(v)}" for k, v in named)  # whose they are comes first
            lines += ["", f"[[{name}.{key}]]", *entries]
    return lines


def _tables(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(x, dict) for x in value)
