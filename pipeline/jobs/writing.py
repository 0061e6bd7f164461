"""Writing a run's files: all of them or none, by one run at a time, and what was written known."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from caffeio import CaffeFileError
from pipeline.errors import ConfigError, PipelineError
from pipeline.log import log
from pipeline.manifest import write_manifest
from pipeline.signals import signals_taken

__all__ = [
    "NO_FOLDER",
    "VIEWS",
    "Writer",
    "held_folder",
    "temporary_folder",
    "write_files",
    "write_folder",
    "written_files",
]

#: What is said of a folder that is none.
NO_FOLDER = "is a file, not a folder to write to"

#: Writes one file.
Writer = Callable[[Path], None]

#: Folders of files that are not whole yet, in the folder that is written to or beside it.
_PREFIX = ".writing-"
#: Kinds that tell of a run, or are made of these: in no manifest, which is the same twice.
VIEWS = ("report", "layers", "page")
#: What `caffeio.atomic_write` leaves where a process is killed.
_PART = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_TRIES = 100
_written: list[Path] = []
#: Descriptors that hold folders, and which of these were made for it.
_locks: dict[Path, int] = {}
_fresh: set[Path] = set()
#: Of renameat2: two names change places at once, relative to where the process is.
_EXCHANGE, _HERE = 2, -100


def written_files() -> tuple[Path, ...]:
    """Return what the latest run of this process has written, to say what an interruption left."""
    return tuple(_written)


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Make a folder and keep other runs from writing to it; what killed ones left is removed.

    The lock is on the folder itself (flock): it is gone with the process, however that ends. A
    folder that was made here and is still empty at the end is removed.

    Raises
    ------
    PipelineError
        If another run writes to it, or it cannot be made or written.
    """
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    held = False
    try:
        lock = _held(folder)
        _locks[folder], held = lock, True
        if folder in made:
            _fresh.add(folder)
        _remove_leftovers(folder)
        _written.clear()
        yield
    finally:
        if held:
            os.close(_locks.pop(folder))
            _fresh.discard(folder)
        with suppress(OSError):  # it holds something, or is held
            for path in made if held else made[1:]:
                path.rmdir()


def _held(folder: Path) -> int:
    """Make and lock a folder; return the descriptor that holds it."""
    for tries in range(_TRIES):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and tries + 1 < _TRIES:
                continue  # a run that has written nothing takes it away
            if isinstance(error, FileExistsError):
                raise PipelineError(f"{folder}: {NO_FOLDER}") from None
            raise PipelineError(f"{folder}: cannot be written: {error.strerror}") from None
        if not _locked(lock):
            os.close(lock)
            break
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), folder.stat()):
                return lock
        os.close(lock)  # another run has put its folder in the place of this one
    raise PipelineError(
        f"{folder}: another run is writing to this folder; wait for its end, or write to another "
        "one"
    )


def _locked(descriptor: int) -> bool:
    """Take the lock of an open folder; True also where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN)
    return True


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed runs have half written; folders of runs that live are locked."""
    for path in folder.iterdir() if folder.exists() else ():
        if _PART.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
    beside = re.compile(rf"{re.escape(_PREFIX + folder.name)}-[a-z0-9_]{{8}}")  # as mkdtemp has it
    others = (p for p in folder.parent.glob(f"{_PREFIX}*") if beside.fullmatch(p.name))
    for path in (*folder.glob(f"{_PREFIX}*"), *others):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if _locked(descriptor):
                    shutil.rmtree(path)
                    log.info("removed %s, which a run that was killed has left", path)
            finally:
                os.close(descriptor)


@contextmanager
def temporary_folder(folder: Path) -> Iterator[tuple[Path, int]]:
    """Make a folder for files that will be in `folder`: beside it, or in it where that fails.

    Yielded with the descriptor that holds it. Whatever it has at the end is removed.
    """
    try:
        made = tempfile.mkdtemp(dir=folder.parent, prefix=f"{_PREFIX}{folder.name}-")
        if os.stat(made).st_dev != (folder if folder.exists() else folder.parent).stat().st_dev:
            os.rmdir(made)  # a mounted folder: nothing moves into it in one step
            raise OSError
    except OSError:
        if not folder.exists():
            raise
        made = tempfile.mkdtemp(dir=folder, prefix=_PREFIX)
    lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    _locked(lock)
    try:
        yield Path(made), lock
    finally:
        os.close(lock)
        shutil.rmtree(made, ignore_errors=True)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder that is not there yet, whole or not at all.

    Parameters
    ----------
    folder : Path
    write : callable
        Fills a folder that it is given.

    Raises
    ------
    PipelineError
        If it cannot be written, or has been made meanwhile.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with temporary_folder(folder) as (temporary, _):
            place = temporary / folder.name
            place.mkdir()
            write(place)
            with _signals_held() as arrived:
                os.rename(place, folder)
                _written[:] = [folder]
    except OSError as error:
        raise PipelineError(f"{folder}: cannot be written: {error.strerror}") from None
    if arrived:
        raise KeyboardInterrupt(f"interrupted; all files had been written to {folder}")


def write_files(
    files: Mapping[str, Path], writers: Mapping[str, Writer], *, overwrite: bool = True
) -> None:
    """Write all files to a temporary folder, then give each its name: all of them or none.

    In one step where the folder was made for it. Else one after another, with signals held back; if
    one cannot be put there, those before it are taken back. The manifest, which is made here, comes
    last: a set of which a process that was killed has changed a part is noticed by it.

    Parameters
    ----------
    files : mapping of kind to Path
        All in one folder; that of the kind "manifest" names the others.
    writers : mapping of kind to Writer
    overwrite : bool
        Whether files that are there by now may be replaced.

    Raises
    ------
    ConfigError
        If a file has been made meanwhile, and must not be replaced. Nothing has changed then.
    PipelineError
        If the folder cannot be written.
    KeyboardInterrupt
        If a signal came while files were given their names: all are in place, as it says.
    """
    folder = next(iter(files.values())).parent
    try:
        with temporary_folder(folder) as (temporary, lock):
            made = {kind: temporary / path.name for kind, path in files.items()}
            manifest = made.pop("manifest", None)
            for kind, path in made.items():
                try:
                    writers[kind](path)
                except CaffeFileError as error:  # by the name that it would have
                    if error.path != path:
                        raise
                    raise CaffeFileError(files[kind], error.message) from None
            if manifest is not None:
                write_manifest(manifest, [p for k, p in made.items() if k not in VIEWS])
                made["manifest"] = manifest
            with _signals_held() as arrived:
                if not _moved_whole(temporary, lock, folder):
                    _move_each(temporary, [folder / p.name for p in made.values()], overwrite)
                _written.extend(files.values())
    except FileExistsError as error:
        raise ConfigError(
            f"{error.filename2} has been made meanwhile; set output.overwrite = true, or write to "
            "another folder"
        ) from None
    except OSError as error:
        raise PipelineError(f"{folder}: cannot be written: {error.strerror}") from None
    for path in files.values():
        log.info("written: %s", path)
    if arrived:
        raise KeyboardInterrupt(f"interrupted; all files had been written to {folder}")


@contextmanager
def _signals_held() -> Iterator[list[int]]:
    """Note Ctrl-C and SIGTERM instead of acting on them."""
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    with signals_taken(note):
        yield arrived


def _moved_whole(temporary: Path, lock: int, folder: Path) -> bool:
    """Put a whole folder in the place of one that was made for it and has nothing but kept states.

    A user's own folder stays what it is: somebody may stand in it, or have given it a group. Who
    holds the one then holds the other.
    """
    if folder not in _fresh:
        return False
    try:
        kept = list(folder.iterdir())
        if not all(path.name.startswith(".") and path.is_file() for path in kept):
            return False
        if temporary.parent.resolve() != folder.parent.resolve():
            return False
        for path in kept:
            os.link(path, temporary / path.name)
        os.chmod(temporary, folder.stat().st_mode)
        if kept:
            _exchange(temporary, folder)
        else:
            os.rename(temporary, folder)  # fails unless the folder is empty
    except OSError:
        return False
    if folder in _locks:
        os.dup2(lock, _locks[folder])
    return True


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change places in one step."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None or rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
        raise OSError(ctypes.get_errno(), "cannot change places")


def _move_each(temporary: Path, paths: Sequence[Path], overwrite: bool) -> None:
    """Give each file its name; take all back if one cannot have it."""
    old, moved = temporary / "old", []
    old.mkdir()
    try:
        for path in paths:
            if overwrite:
                with suppress(FileNotFoundError):
                    _kept(path, old / path.name)
                os.replace(temporary / path.name, path)
            else:
                _put(temporary / path.name, path)
            moved.append(path)
    except BaseException:
        for path in moved:
            if (old / path.name).exists():
                os.replace(old / path.name, path)
            else:
                path.unlink()
        raise


def _put(made: Path, path: Path) -> None:
    """Give a file a name that no other has: unlike a rename, a link fails if one is there."""
    try:
        os.link(made, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links; who writes here holds the folder
        if path.exists():
            raise FileExistsError(errno.EEXIST, "File exists", made, None, path) from None
        os.rename(made, path)


def _kept(path: Path, old: Path) -> None:
    """Keep a file under a second name; a copy where the file system has no links."""
    try:
        os.link(path, old)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(path, old)
