"""Which plugins are installed, without importing them and, most of the time, without looking for them.

Scanning all installed packages costs more than a whole probe, so the answer is kept in the user's cache folder under
the modification times of every folder of ``sys.path``: installing or removing any package changes one of them. The
cache also keeps what each plugin registered (which hardware it matches), stamped with its source files' times, so that
a plugin without its hardware is not imported at all. It holds data only, and a broken or unwritable cache is no cache.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import msgspec

from hal.drivers.match import Match
from hal.model.kind import Kind

GROUP = "hal.plugins"
_VERSION = 1


class DriverFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a driver factory says about itself, without the code."""

    name: str
    kinds: tuple[Kind, ...]
    matches: tuple[Match, ...] = ()
    priority: int = 10
    brings_hosts: bool = False


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One installed plugin: an entry point, and what it registered when it was last loaded (None: not known)."""

    name: str
    module: str
    distribution: str = ""
    version: str = ""
    drivers: tuple[DriverFacts, ...] | None = None
    stamp: tuple[str, int] = ("", 0)


class _Cache(msgspec.Struct, kw_only=True):
    version: int
    path: tuple[tuple[str, int], ...]
    entries: tuple[Entry, ...]


def installed(environ: Mapping[str, str] | None = None) -> tuple[Entry, ...]:
    """Return the installed plugins, ordered by name."""
    path = _path_stamp()
    cache = _read(environ)
    if cache is not None and cache.version == _VERSION and cache.path == path:
        return tuple(
            entry if entry.drivers is None or _fresh(entry) else msgspec.structs.replace(entry, drivers=None)
            for entry in cache.entries
        )
    entries = _scan()
    _write(_Cache(version=_VERSION, path=path, entries=entries), environ)
    return entries


def remember(entries: tuple[Entry, ...], environ: Mapping[str, str] | None = None) -> None:
    """Keep what loaded plugins registered, for the next process."""
    _write(_Cache(version=_VERSION, path=_path_stamp(), entries=entries), environ)


def source_stamp(file: str) -> tuple[str, int]:
    """Return a plugin's folder and the newest modification time in it (nanoseconds)."""
    folder = os.path.dirname(file)
    newest = 0
    try:
        with os.scandir(folder) as names:
            for name in names:
                if name.name.endswith(".py"):
                    newest = max(newest, name.stat().st_mtime_ns)
    except OSError:
        return folder, 0
    return folder, newest


def _fresh(entry: Entry) -> bool:
    folder, stamp = entry.stamp
    return bool(folder) and source_stamp(os.path.join(folder, "x"))[1] == stamp


def _path_stamp() -> tuple[tuple[str, int], ...]:
    found: list[tuple[str, int]] = []
    for folder in sys.path:
        try:
            found.append((folder, os.stat(folder or ".").st_mtime_ns))
        except OSError:
            continue
    return tuple(found)


def _scan() -> tuple[Entry, ...]:
    from importlib.metadata import entry_points

    entries: dict[str, Entry] = {}
    for point in entry_points(group=GROUP):
        owner = point.dist
        entries.setdefault(
            point.name,
            Entry(
                name=point.name,
                module=point.module,
                distribution=owner.name if owner is not None else "",
                version=owner.version if owner is not None else "",
            ),
        )
    return tuple(entries[name] for name in sorted(entries))


def _file(environ: Mapping[str, str] | None) -> str:
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    # One file for every way of starting Python: -m, -c and a script differ in the first folder of sys.path.
    marker = "|".join((sys.prefix, *sys.path)).encode(errors="surrogateescape")
    return os.path.join(base, "hal", f"plugins-{_short_hash(marker)}.json")


def _short_hash(data: bytes) -> str:
    import zlib

    return f"{zlib.crc32(data):08x}"


def _read(environ: Mapping[str, str] | None) -> _Cache | None:
    try:
        with open(_file(environ), "rb") as file:
            return msgspec.json.decode(file.read(), type=_Cache)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None


def _write(cache: _Cache, environ: Mapping[str, str] | None) -> None:
    target = _file(environ)
    fresh = f"{target}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        with open(fresh, "wb") as file:
            file.write(msgspec.json.encode(cache))
        os.replace(fresh, target)
    except OSError:
        # Without a writable cache the next process looks again; nothing else depends on it.
        return
