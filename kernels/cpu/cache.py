"""Compiled kernels on disk: where they lie, and when one of them counts.

numba keeps an index beside its files, and looks at the time or the text of a function's own file.
Two processes that fill one folder at once can then give two signatures one name; a damaged file
raises, or runs; and a function that another module's constants went into stays as it was when
they change. Here each kernel is a file of its own, named by function, signature and processor. It
begins with a digest of the versions of numba and NumPy, of the sources of its module and of
all modules of this package that it imports, and of what follows. A file whose digest is another
is stale or damaged: the kernel is compiled again, and the file replaced.

Where no folder can be written, files that lie there are still read; what is compiled is then lost
with the process, which is said once.
"""

from __future__ import annotations

import ast
import hashlib
import os
import pickle
import sys
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core import caching, config
from numba.core.serialize import dumps

from kernels.compiling import CacheWarning
from kernels.locks import Lock

__all__ = ["cache_for", "problem"]

#: What an entry depends on beside the sources; the first number is that of the form of the files.
_VERSIONS = f"1 {numba.__version__} {np.__version__}"
_DIGEST_BYTES = hashlib.sha256().digest_size

_problem: list[str] = []  # the one that was said
_LOCK = Lock()


def problem() -> str:
    """Return why kernels that were compiled are not on disk; nothing if they are."""
    return _problem[0] if _problem else ""


def _say(why: str) -> None:
    """Warn that kernels are not kept, once in a process."""
    with _LOCK:
        if _problem:
            return
        _problem.append(
            f"compiled kernels are not kept on disk, the next process compiles them again: {why}; "
            "NUMBA_CACHE_DIR can name a folder that may be written"
        )
    warnings.warn(_problem[0], CacheWarning, stacklevel=2)


@cache
def _source(module: str) -> tuple[str, frozenset[str]]:
    """Return the digest of a module's source, and the modules of this package it imports.

    By its text alone: what happens to be loaded depends on what was called before.
    """
    spec = find_spec(module)
    loader: Any = spec.loader if spec else None
    text = loader.get_source(module) if hasattr(loader, "get_source") else None
    text = text or ""  # a frozen program has none: the stamp of its file is looked at, too
    names: set[str] = set()
    for line in ast.parse(text).body:
        if isinstance(line, ast.Import):
            names.update(name.name for name in line.names)
        elif isinstance(line, ast.ImportFrom) and line.module:
            names.update((line.module, *(f"{line.module}.{name.name}" for name in line.names)))
    own = {n for n in names if n.split(".")[0] == "kernels" and _is_module(n)}
    return hashlib.sha256(text.encode()).hexdigest(), frozenset(own - {module})


@cache
def _is_module(name: str) -> bool:
    """Tell a module from what else may be imported of a package."""
    if name in sys.modules:
        return True
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of what is no package
        return False


@cache  # at import, when the sources are those that are running
def _stamp(module: str) -> str:
    """Return a digest of the sources that a module's kernels are made of."""
    found, waiting = {module: ""}, [module]
    while waiting:
        name = waiting.pop()
        found[name], imports = _source(name)
        new = imports.difference(found)
        found.update(dict.fromkeys(new, ""))
        waiting.extend(new)
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


class _Entries:
    """The files of one function, in place of numba's index and data files.

    Parameters
    ----------
    folder : str
    base : str
        What their names begin with.
    stamp : object
        Of the sources.
    """

    def __init__(self, folder: str, base: str, stamp: object) -> None:
        self._folder, self._base = Path(folder), base
        self._head = f"{_VERSIONS} {stamp!r}".encode()

    def load(self, key: Any) -> Any:
        """Return what was saved under a key; None if that is not there, stale or damaged."""
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        body = memoryview(content)[_DIGEST_BYTES:]
        if content[:_DIGEST_BYTES] != self._digest(body):
            return None
        saved_key, data = pickle.loads(body)
        return data if saved_key == key else None

    def save(self, key: Any, data: Any) -> None:
        """Save under a key: other processes see the whole file, or that of before."""
        body, path = dumps((key, data)), self._path(key)
        part = path.with_name(f"{path.name}.tmp.{uuid.uuid4().hex[:16]}")
        try:
            with part.open("wb") as file:
                file.write(self._digest(body))
                file.write(body)
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise

    def flush(self) -> None:
        """Remove all files of the function."""
        for path in self._folder.glob(f"{self._base}.*.nbc"):
            with suppress(OSError):
                path.unlink()

    def _digest(self, body: bytes | memoryview) -> bytes:
        digest = hashlib.sha256(self._head)
        digest.update(body)
        return digest.digest()

    def _path(self, key: Any) -> Path:
        # of types that have one name and yet differ, the one replaces the other
        name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        return self._folder / f"{self._base}.{name}.nbc"


class _UserWide(caching.UserWideCacheLocator):
    """The user's cache folder, if the user has a home: else numba makes a folder called ``~``."""

    @classmethod
    def from_function(cls, function: Callable, file: str) -> Any:
        homeless = not os.path.isabs(cls(function, file).get_cache_path())
        return None if homeless else super().from_function(function, file)


class _Unwritable(caching.InTreeCacheLocator):
    """The last resort: a folder that can be read, if it is there."""

    def __init__(self, function: Callable, file: str) -> None:
        super().__init__(function, file)
        if folder := vars(config)["CACHE_DIR"]:
            self._cache_path = os.path.join(folder, self.get_suitable_cache_subpath(file))

    @classmethod
    def from_function(cls, function: Callable, file: str) -> _Unwritable | None:
        return cls(function, file) if os.path.exists(file) else None


class _Kernels(caching.CompileResultCacheImpl):
    def __init__(self, function: Callable) -> None:
        numbas, user_wide = self._locator_classes, caching.UserWideCacheLocator
        known = [_UserWide if locator is user_wide else locator for locator in numbas]
        self._locator_classes = [*known, _Unwritable]
        super().__init__(function)


class _Cache(caching.FunctionCache):
    """The cache of one function: whatever is wrong with a file, the function is compiled."""

    _impl_class = _Kernels

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        locator = self._impl.locator
        stamp = _stamp(function.__module__), locator.get_source_stamp()
        self._cache_file: Any = _Entries(locator.get_cache_path(), self._impl.filename_base, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # what it was pickled with has changed since, for one
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _say(f"{self.cache_path}: {error.strerror or error}")


class _Nowhere(caching.NullCache):
    """For functions for which numba knows no place at all."""

    def __init__(self, why: str) -> None:
        self._why = why

    def save_overload(self, sig: Any, data: Any) -> None:
        _say(self._why)


def cache_for(function: Callable) -> Any:
    """Return the cache of a function that is about to be compiled; it never raises."""
    try:
        return _Cache(function)
    except (OSError, RuntimeError) as error:
        return _Nowhere(str(error))
