"""Files and folders that options name: looked at before the work that ends in them."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moiety.errors import InputError, OutputError

if TYPE_CHECKING:
    from collections.abc import Generator


def checked_target(option: str, name: str) -> Path:
    """Return the file that an option names; raise InputError or OutputError where nothing could be written there."""
    path = Path(name)
    if path.is_dir() or name.endswith("/"):
        raise InputError("must name a file, not a folder", field=option, value=name)
    check_folder_of(option, path)
    return path


def checked_folder(option: str, name: str) -> Path:
    """Return the folder that an option names; raise OutputError where nothing could be written into it."""
    from moiety.files import check_folder

    with naming(option):
        check_folder(name)
    return Path(name)


def check_folder_of(option: str, path: Path) -> None:
    """Raise OutputError where the folder of a path that an option names could not be written into, or be made."""
    checked_folder(option, str(path.parent))


@contextmanager
def naming(option: str) -> Generator[None]:
    """Put the option that named a place before what is said of it where that cannot be written."""
    try:
        yield
    except OutputError as error:
        raise OutputError(f"{option}: {error}") from None
