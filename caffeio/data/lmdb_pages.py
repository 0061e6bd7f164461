"""The pages of an LMDB, looked at before the library maps them.

liblmdb reads a file as if it were memory and believes it: a page number that leads out of the file
ends the process. Layouts are those of the library's own mdb.c (version 0.9, data version 1).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from caffeio.errors import CaffeFileError, reading

__all__ = ["check_lmdb_pages"]

_MAGIC, _VERSION = 0xBEEFC0DE, 1
#: Bytes before a page's content, and before a node's key.
_PAGE_HEAD, _NODE_HEAD = 16, 8
_BRANCH, _LEAF, _META = 1, 2, 8
#: A value in pages of its own; others (databases in databases, several values) are not Caffe's.
_BIG = 1
_NO_PAGE = (1 << 64) - 1
_DEEPEST = 32
#: The two pages with the places of all else, where sizes of pages may be from 512 to 65536 bytes.
_META_BYTES = 200


@dataclass(frozen=True)
class _Meta:
    """What the newer of the two first pages says."""

    page_size: int
    #: Pages in the file; those that were freed as they were made need not be there.
    pages: int
    flags: int
    root: int
    last_page: int
    entries: int


def check_lmdb_pages(path: Path) -> None:
    """Raise unless all that an LMDB refers to lies within its file.

    Parameters
    ----------
    path : Path
        The file data.mdb.

    Raises
    ------
    CaffeFileError
        If the file is cut short or damaged, or holds more than one database of single values.
    """
    with reading(path), path.open("rb", buffering=0) as file:
        size = path.stat().st_size
        meta = _meta(path, file, size)
        if meta.flags:
            raise CaffeFileError(path, "is an LMDB of another kind than Caffe writes")
        count = _check_tree(path, file, meta) if meta.root != _NO_PAGE else 0
    if count != meta.entries:
        raise CaffeFileError(
            path, f"is a damaged LMDB: {count} of {meta.entries} records are there"
        )


def _meta(path: Path, file: IO[bytes], size: int) -> _Meta:
    """Return the newer of both, as liblmdb chooses."""
    first = _read_meta(path, file, 0, size)
    if not 256 <= first[1].page_size <= 65536 or first[1].page_size * 2 > size:
        raise CaffeFileError(path, "is cut short or damaged, or is no LMDB")
    second = _read_meta(path, file, first[1].page_size, size)
    if second[1].page_size != first[1].page_size:
        raise CaffeFileError(path, "is a damaged LMDB: its two first pages differ")
    return max(first, second, key=lambda m: m[0])[1]


def _read_meta(path: Path, file: IO[bytes], at: int, size: int) -> tuple[int, _Meta]:
    file.seek(at)
    page = file.read(_META_BYTES)
    if len(page) < _META_BYTES:
        raise CaffeFileError(path, "is cut short, or is no LMDB")
    (flags,) = struct.unpack_from("<H", page, 10)
    magic, version = struct.unpack_from("<II", page, _PAGE_HEAD)
    if not flags & _META or (magic, version) != (_MAGIC, _VERSION):
        raise CaffeFileError(path, "is damaged, or is no LMDB of this kind of machine")
    # address and size of the map, two databases of 48 bytes each, the last page, the transaction
    (page_size,) = struct.unpack_from("<I", page, 40)
    flags, _, _, _, _, entries, root = struct.unpack_from("<HHQQQQQ", page, 92)
    last_page, transaction = struct.unpack_from("<QQ", page, 136)
    pages = size // page_size if page_size else 0
    return transaction, _Meta(page_size, pages, flags, root, last_page, entries)


def _check_tree(path: Path, file: IO[bytes], meta: _Meta) -> int:
    """Check all pages, and return how many records there are."""
    waiting, seen, records = [(meta.root, 1)], {meta.root}, 0
    while waiting:
        number, depth = waiting.pop()
        count, children = _check_page(path, file, meta, number)
        if depth > _DEEPEST or not seen.isdisjoint(children):
            raise _damaged(path, number)
        seen.update(children)
        waiting += [(child, depth + 1) for child in children]
        records += count
    return records


def _there(path: Path, meta: _Meta, first: int, count: int, number: int) -> None:
    """Raise unless pages that page `number` refers to are in use, and in the file."""
    if first < 2 or first + count > meta.last_page + 1:
        raise _damaged(path, number)
    if first + count > meta.pages:
        raise CaffeFileError(path, f"is an LMDB that is cut short: page {first} is not all there")


def _damaged(path: Path, number: int) -> CaffeFileError:
    return CaffeFileError(path, f"is a damaged LMDB: page {number} is wrong")


def _check_page(path: Path, file: IO[bytes], meta: _Meta, number: int) -> tuple[int, list[int]]:
    """Check a page; return its number of records, and the pages under it."""
    _there(path, meta, number, 1, number)
    file.seek(number * meta.page_size)
    page = file.read(meta.page_size)
    own, _, flags, lower, _ = struct.unpack_from("<QHHHH", page)
    count = (lower - _PAGE_HEAD) // 2
    least = 2 if flags == _BRANCH else 1
    if own != number or flags not in (_BRANCH, _LEAF) or lower > meta.page_size or count < least:
        raise _damaged(path, number)
    nodes = np.frombuffer(page, "<u2", count, _PAGE_HEAD).astype(np.int64)
    if nodes.min() < lower or nodes.max() + _NODE_HEAD > meta.page_size:
        raise _damaged(path, number)
    heads = np.frombuffer(page, np.uint8)[nodes[:, None] + np.arange(_NODE_HEAD)].view("<u2")
    low, high, kind, key = heads.astype(np.int64).T
    begin = nodes + _NODE_HEAD + key
    if flags == _BRANCH:
        if begin.max() > meta.page_size:
            raise _damaged(path, number)
        return 0, (low | high << 16 | kind << 32).tolist()
    big, size = kind == _BIG, low | high << 16
    if (kind > _BIG).any() or (begin + np.where(big, 8, size)).max() > meta.page_size:
        raise _damaged(path, number)
    for at, length in zip(begin[big].tolist(), size[big].tolist(), strict=True):
        (first,) = struct.unpack_from("<Q", page, at)
        pages = -(-(length + _PAGE_HEAD) // meta.page_size)
        _there(path, meta, first, pages, number)
    return count, []
