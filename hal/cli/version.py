"""Which version of the core this is."""

from __future__ import annotations


def version_line(program: str) -> str:
    """Return the program's name and the version of the installed distribution."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{program} {version('rackhal')}"
    except PackageNotFoundError:
        return f"{program} (not installed: running from a source tree)"
