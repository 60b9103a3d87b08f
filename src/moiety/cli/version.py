"""The version of the installed package."""

from __future__ import annotations


def installed_version() -> str:
    """Return the version that was installed, "uninstalled" where the source runs without an installation."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("moiety")
    except PackageNotFoundError:
        return "uninstalled"
