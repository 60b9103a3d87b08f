"""Files that options name: looked at before the work that ends in them."""

from __future__ import annotations

from pathlib import Path

from moiety.errors import InputError, OutputError
from moiety.files import check_folder


def checked_target(option: str, name: str) -> Path:
    """Return the file that an option names; raise InputError or OutputError where nothing could be written there."""
    path = Path(name)
    if path.is_dir() or name.endswith("/"):
        raise InputError("must name a file, not a folder", field=option, value=name)
    try:
        check_folder(path.parent)
    except OutputError as error:
        raise OutputError(f"{option}: {error}") from None
    return path
