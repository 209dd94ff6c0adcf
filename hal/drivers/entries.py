"""Which plugins are installed, without importing them and, most of the time, without looking for them.

Reading the metadata of all installed packages costs more than a whole probe, so the answer is kept in the user's cache
folder. It stands as long as the folders of ``sys.path`` have their modification times; where one has changed (an
editable install's source folder does whenever a tool writes beside it), as long as the folder has the same metadata in
it: installing, upgrading or removing a package makes or removes a folder ``*.dist-info``. The cache also keeps what
each plugin registered (which hardware it matches), stamped with its source files' times, so that a plugin without its
hardware is not imported at all. It holds data only, and a broken or unwritable cache is no cache.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from hal.drivers.match import Match
from hal.model.kind import Kind

GROUP = "hal.plugins"
_VERSION = 3
_METADATA = (".dist-info", ".egg-info")
_SETTLED_NS = 2_000_000_000
"""A folder that changed so recently may change again within one tick of its clock: its time proves nothing yet."""


class DriverFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a driver factory says about itself, without the code."""

    name: str
    kinds: tuple[Kind, ...]
    matches: tuple[Match, ...] = ()
    priority: int = 10
    brings_hosts: bool = False


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One installed plugin: an entry point, and what it registered when it was last loaded (None: not known).

    ``judges`` is true if it has health rules: then every device of every survey is its business.
    """

    name: str
    module: str
    distribution: str = ""
    version: str = ""
    drivers: tuple[DriverFacts, ...] | None = None
    judges: bool = False
    stamp: tuple[str, int] = ("", 0)


class _Folder(msgspec.Struct, frozen=True, array_like=True):
    """A folder of ``sys.path``: when it changed, and the packages' metadata in it, each with its own time."""

    path: str
    changed_ns: int
    metadata: tuple[tuple[str, int], ...]


class _Cache(msgspec.Struct, kw_only=True):
    version: int
    path: tuple[_Folder, ...]
    entries: tuple[Entry, ...]


def installed(environ: Mapping[str, str] | None = None) -> tuple[Entry, ...]:
    """Return the installed plugins, ordered by name."""
    cache = _read(environ)
    before = cache.path if cache is not None else ()
    path = _look(before)
    if cache is None or not before or [one.metadata for one in path] != [one.metadata for one in before]:
        entries = _scan()
        _write(_Cache(version=_VERSION, path=path, entries=entries), environ)
        return entries
    if path != before:
        _write(_Cache(version=_VERSION, path=path, entries=cache.entries), environ)
    return tuple(
        entry if entry.drivers is None or _fresh(entry) else msgspec.structs.replace(entry, drivers=None)
        for entry in cache.entries
    )


def remember(entries: tuple[Entry, ...], environ: Mapping[str, str] | None = None) -> None:
    """Keep what loaded plugins registered, for the next process."""
    cache = _read(environ)
    before = cache.path if cache is not None else ()
    path = _look(before)
    # What was installed since is not among the entries: then nothing is kept, and the next process looks.
    if [one.metadata for one in path] == [one.metadata for one in before]:
        _write(_Cache(version=_VERSION, path=path, entries=entries), environ)


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


def _look(before: tuple[_Folder, ...]) -> tuple[_Folder, ...]:
    """Return the folders of ``sys.path`` as they are; one that has not changed is not looked into."""
    known = {folder.path: folder for folder in before}
    found: list[_Folder] = []
    for path in sys.path:
        try:
            changed = os.stat(path or ".").st_mtime_ns
        except OSError:
            continue
        folder = known.get(path)
        if folder is None or folder.changed_ns != changed:
            metadata = _metadata(path, changed)
            if time.time_ns() - changed < _SETTLED_NS:
                changed = 0
            if folder is None or (changed, metadata) != (folder.changed_ns, folder.metadata):
                folder = _Folder(path, changed, metadata)
        found.append(folder)
    return tuple(found)


def _metadata(path: str, changed_ns: int) -> tuple[tuple[str, int], ...]:
    try:
        with os.scandir(path or ".") as names:
            return tuple(
                sorted(
                    (name.name, name.stat().st_mtime_ns)
                    for name in names
                    if name.name.lower().endswith(_METADATA) or name.name == "EGG-INFO"
                )
            )
    except OSError:
        return (("", changed_ns),)  # an archive: any change of it counts


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
            return _cache(msgspec.json.decode(file.read()))
    except (OSError, msgspec.MsgspecError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _cache(plain: dict[str, Any]) -> _Cache | None:
    """Make the values by hand: to have msgspec work out the types once costs more than all else here."""
    if plain["version"] != _VERSION:
        return None
    return _Cache(
        version=_VERSION,
        path=tuple(
            _Folder(path, changed_ns, tuple((name, at) for name, at in metadata))
            for path, changed_ns, metadata in plain["path"]
        ),
        entries=tuple(_entry(**entry) for entry in plain["entries"]),
    )


def _entry(drivers: list[dict[str, Any]] | None = None, stamp: Sequence[Any] = ("", 0), **plain: Any) -> Entry:
    folder, newest = stamp
    facts = None if drivers is None else tuple(_facts(**driver) for driver in drivers)
    return Entry(drivers=facts, stamp=(folder, newest), **plain)


def _facts(kinds: list[str], matches: Iterable[dict[str, Any]] = (), **plain: Any) -> DriverFacts:
    return DriverFacts(
        kinds=tuple(Kind(kind) for kind in kinds), matches=tuple(_match(**match) for match in matches), **plain
    )


def _match(kind: str | None = None, pci_devices: Iterable[str] = (), **plain: str) -> Match:
    return Match(kind=None if kind is None else Kind(kind), pci_devices=tuple(pci_devices), **plain)


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
