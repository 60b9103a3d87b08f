"""The files that people name: the only module that opens them. Writing is all or nothing."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from moiety.errors import InputError, OutputError

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Mapping

MAX_TEXT_BYTES = 64 * 10**6
MAX_DATA_BYTES = 2 * 10**9


def read_bytes(path: Path | str, *, limit: int = MAX_DATA_BYTES) -> bytes:
    """Return what the file holds; raise InputError when it cannot be opened or holds more than `limit` bytes."""
    source = str(path)
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(limit + 1)
    except FileNotFoundError:
        raise InputError("there is no such file", source=source) from None
    except IsADirectoryError:
        raise InputError("is a folder, not a file", source=source or repr(source)) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {_reason(error)}", source=repr(source)) from None
    if len(data) > limit:
        raise InputError(f"is larger than {limit:,} bytes", source=source)
    return data


def read_text(path: Path | str, *, limit: int = MAX_TEXT_BYTES) -> str:
    """Return the file's text, without a byte-order mark; raise InputError also for what is not UTF-8 text."""
    data = read_bytes(path, limit=limit)
    if b"\0" in data:
        raise InputError("is binary, not text", source=str(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}", source=str(path)
        ) from None


def resolve_input(
    argument: str, *, in_folder: str | None = None, suffixes: Collection[str] = (), known: Collection[str] = ()
) -> Path | None:
    """Return the file that an argument names, or None where it can only be a catalogue name.

    A folder stands for the one file in it that matches `in_folder` (`config.json`, `*_deployment_method.json`). A
    word without a separator or one of `suffixes` is a catalogue name, unless it is not `known` there and a file of
    that name exists. Raises InputError for a folder without such a file, or with several.
    """
    spelled_as_path = any(mark in argument for mark in ("/", os.sep)) or argument.endswith(tuple(suffixes))
    spelled_as_path = spelled_as_path or argument in {".", "..", "~"}
    if not argument or (argument in known and not spelled_as_path):
        return None
    path = Path(argument)
    try:
        path = path.expanduser()
        if path.is_dir() and (spelled_as_path or (in_folder and any(path.glob(in_folder)))):
            return _only_file(path, in_folder)
        return path if spelled_as_path or (path.exists() and not path.is_dir()) else None
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot be read: {_reason(error)}", source=repr(argument)) from None


def _only_file(folder: Path, pattern: str | None) -> Path:
    if pattern is None:
        raise InputError("is a folder, not a file", source=str(folder))
    found = sorted(folder.glob(pattern))
    if not found:
        raise InputError(f"the folder holds no {pattern}", source=str(folder))
    if len(found) > 1:
        names = ", ".join(each.name for each in found[:5])
        raise InputError(f"the folder holds {len(found)} files {pattern}", source=str(folder), remedy=f"name {names}")
    return found[0]


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


@dataclass(slots=True)
class _Writing:
    """What has been done so far, so that it can be undone."""

    made_folders: list[Path] = field(default_factory=list[Path])
    temporaries: dict[str, Path] = field(default_factory=dict[str, Path])
    backups: dict[str, Path] = field(default_factory=dict[str, Path])
    placed: list[Path] = field(default_factory=list[Path])

    def undo(self) -> None:
        """Put everything back as it was, as far as the file system lets us."""
        for target in reversed(self.placed):
            backup = self.backups.get(target.name)
            with contextlib.suppress(OSError):
                if backup is None:
                    target.unlink()
                else:
                    backup.replace(target)
        # A backup that is still another name of its target stays when it is moved there: it goes here.
        for leftover in (*self.temporaries.values(), *self.backups.values()):
            with contextlib.suppress(OSError):
                leftover.unlink()
        for folder in reversed(self.made_folders):
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_folder(folder: Path | str) -> None:
    """Raise OutputError where `write_all` could not write into the folder; long work asks before it begins."""
    current = Path(folder)
    try:
        while not current.exists() and current != current.parent:
            current = current.parent
        reason = None if current.is_dir() else "there is a file of that name"
        if reason is None and not os.access(current, os.W_OK | os.X_OK):
            reason = "it may not be written to"
    except OSError as error:
        reason = _reason(error)
    if reason is not None:
        raise OutputError(f"{current}: cannot be written: {reason}; nothing was changed")


def checked_target(option: str, name: str) -> Path:
    """Return the file that an option names; raise InputError or OutputError where nothing could be written there."""
    path = Path(name)
    try:
        is_folder = path.is_dir() or name.endswith("/")
    except OSError as error:
        raise OutputError(f"{option}: {name}: cannot be written: {_reason(error)}; nothing was changed") from None
    if is_folder:
        raise InputError("must name a file, not a folder", field=option, value=name)
    check_folder_of(option, path)
    return path


def checked_folder(option: str, name: str) -> Path:
    """Return the folder that an option names; raise OutputError where nothing could be written into it."""
    with naming(option):
        check_folder(name)
    return Path(name)


def check_folder_of(option: str, path: Path) -> None:
    """Raise OutputError where the folder of a path that an option names could not be written into, or be made."""
    checked_folder(option, str(path.parent))


@contextlib.contextmanager
def naming(option: str) -> Generator[None]:
    """Put the option that named a place before what is said of it where that cannot be written."""
    try:
        yield
    except OutputError as error:
        raise OutputError(f"{option}: {error}") from None


def write_all(folder: Path | str, contents: Mapping[str, str | bytes]) -> tuple[Path, ...]:
    """Write the files, by name, into the folder (made where it is missing) and return their paths.

    All of them appear whole, or none: what was there before is put back when anything fails. Raises InputError for a
    name that is not a plain file name, OutputError when the folder or a file cannot be written.
    """
    target_folder = Path(folder)
    for name in contents:
        if name in {"", ".", ".."} or "/" in name or os.sep in name or "\0" in name:
            raise InputError("a file name must not be empty or contain a separator", field="name", value=name)
    writing = _Writing()
    current = target_folder
    try:
        _make_folder(target_folder, writing)
        mark = f".moiety-{os.getpid()}-{os.urandom(4).hex()}"
        for index, (name, content) in enumerate(contents.items()):
            current = target_folder / name
            _write_temporary(target_folder / f"{mark}-{index}.part", name, content, writing)
        for index, name in enumerate(contents):
            current = target_folder / name
            _place(current, target_folder / f"{mark}-{index}.old", writing)
        _sync(target_folder)
    except (OSError, ValueError) as error:
        writing.undo()
        raise OutputError(f"{current}: cannot be written: {_reason(error)}; nothing was changed") from None
    except BaseException:  # an interrupt from the keyboard: leave nothing half-written, then stop
        writing.undo()
        raise
    for backup in writing.backups.values():
        with contextlib.suppress(OSError):
            backup.unlink()
    return tuple(target_folder / name for name in contents)


def remove_leftovers(folder: Path | str) -> None:
    """Remove what `write_all` has left in the folder unfinished, where its process was killed."""
    for path in Path(folder).glob(".moiety-*-*-*"):
        pid = path.name.split("-")[1]
        if path.suffix in {".part", ".old"} and pid.isdecimal() and not _lives(int(pid)):
            with contextlib.suppress(OSError):
                path.unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def replacing_folder(folder: Path | str, *, previous: Path | None = None) -> Generator[Path]:
    """Give an empty folder beside `folder`, whose name it takes when the block ends well.

    What was there before becomes `previous`, where that is given, in place of what that held. Where the block fails
    all stays as it was. A process that is killed leaves `folder`, or else `previous`, whole; what it leaves beside is
    removed by the next call. Raises OutputError where the folder cannot be made or moved.
    """
    target = Path(folder).absolute()
    _remove_unplaced(target)
    mark = f".{target.name}-{os.getpid()}-{os.urandom(4).hex()}"
    fresh, old = target.parent / f"{mark}.part", target.parent / f"{mark}.old"
    kept = old if previous is None else previous.absolute()
    moved: list[tuple[Path, Path]] = []
    try:
        fresh.mkdir(parents=True)
        yield fresh
        _sync(fresh)
        for each, place in ((kept, old), (target, kept)) if target.exists() else ():
            if each.exists():
                each.rename(place)
                moved.append((each, place))
        fresh.rename(target)
        moved.clear()
        _sync(target.parent)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {_reason(error)}; nothing was changed") from None
    finally:
        for each, place in reversed(moved):
            place.rename(each)
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _remove_unplaced(target: Path) -> None:
    """Remove what processes have left that were killed while they replaced a folder."""
    for each in target.parent.glob(f".{glob.escape(target.name)}-*"):
        mark = re.fullmatch(r"-([0-9]+)-[0-9a-f]{8}\.(part|old)", each.name.removeprefix(f".{target.name}"))
        if mark and not _lives(int(mark[1])):
            shutil.rmtree(each, ignore_errors=True)


@contextlib.contextmanager
def held_alone(lock: Path, taken: InputError) -> Generator[None]:
    """Hold a lock file while the block runs, for one process at a time; it ends with the process, however that ends.

    Raises `taken` where another process holds it, OutputError where it cannot be made.
    """
    import fcntl  # noqa: PLC0415 - Windows has none, and plans without it

    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("ab")
    except OSError as error:
        raise OutputError(f"{lock}: cannot be written: {_reason(error)}; nothing was changed") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        yield


def _make_folder(folder: Path, writing: _Writing) -> None:
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir()
        writing.made_folders.append(each)
    if not folder.is_dir():
        raise NotADirectoryError(0, "it is a file, not a folder")


def _write_temporary(path: Path, name: str, content: str | bytes, writing: _Writing) -> None:
    data = content.encode("utf-8") if isinstance(content, str) else content
    writing.temporaries[name] = path
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _place(target: Path, backup: Path, writing: _Writing) -> None:
    """Move the finished file to its name; what is there already is kept beside until all are in place."""
    if target.is_dir():
        raise IsADirectoryError(0, "there is a folder of that name")
    if target.exists() and not target.is_file():
        raise OSError(0, "it is a device or a pipe, not a file")
    existed = os.path.lexists(target)
    if existed:
        writing.backups[target.name] = backup
    writing.placed.append(target)
    if existed:
        try:
            os.link(target, backup, follow_symlinks=False)
        except OSError:  # a file system without hard links
            target.replace(backup)
    writing.temporaries[target.name].replace(target)
    del writing.temporaries[target.name]


def _sync(folder: Path) -> None:
    """Make the names last through a power cut, where the system offers that for folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
