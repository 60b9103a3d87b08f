"""Files and folders that options name: looked at before the work that ends in them."""

from __future__ import annotations

from pathlib import Path

from moiety.errors import InputError, OutputError


def checked_target(option: str, name: str) -> Path:
    """Return the file that an option names; raise InputError or OutputError where nothing could be written there."""
    path = Path(name)
    if path.is_dir() or name.endswith("/"):
        raise InputError("must name a file, not a folder", field=option, value=name)
    check_folder_of(option, path)
    return path


def check_folder_of(option: str, path: Path) -> None:
    """Raise OutputError where the folder of a path that an option names could not be written into, or be made."""
    from moiety.files import check_folder

    try:
        check_folder(path.parent)
    except OutputError as error:
        raise OutputError(f"{option}: {error}") from None
