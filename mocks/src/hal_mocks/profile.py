"""Profiles: machines described in TOML, ours or yours, turned into graphs; mistakes are named with file and line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import msgspec

from hal.errors import ProfileError
from hal_mocks.graph import Graph, Host
from hal_mocks.profile_models import PROFILES, convert, one_of
from hal_mocks.profile_schema import HostTable, Mistake, Profile

Where = tuple[str | int, ...]
_MOST_HOSTS = 100_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def profile_names() -> list[str]:
    """Return the names of the profiles that come with this package."""
    return sorted(path.stem for path in PROFILES.glob("*.toml"))


def find_profile(name: str) -> Path:
    """Return the file of a profile: one of ours by name, or a path (it ends in ``.toml`` or has a slash)."""
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise ProfileError(f"{name}: no such file", hint="hal-mock profiles")
        return path
    path = PROFILES / f"{name}.toml"
    if not name or not path.is_file():
        raise ProfileError(f"no profile is called {name!r}", hint=one_of(name, profile_names()))
    return path


def load_profile(name_or_path: str | Path, seed: int = 0) -> Graph:
    """Return the graph of a profile. The same profile and seed give the same graph, identities included.

    Raises :class:`~hal.errors.ProfileError` naming file and line.
    """
    path = find_profile(str(name_or_path))
    return parse_profile(_text(path), seed, path.stem, path)


def parse_profile(text: str, seed: int = 0, name: str = "profile", path: Path | None = None) -> Graph:
    """Return the graph of a profile's text; ``name`` goes into identities, ``path`` into errors and includes."""
    path = path or Path(f"{name}.toml")
    document = _document(text, path)
    try:
        return Graph(name=name, hosts=_hosts(document, path, seed, name), seed=seed)
    except Mistake as mistake:
        _blame(text, path, mistake)


def summary_of(name_or_path: str) -> str:
    """Return a profile's own words about itself."""
    path = find_profile(name_or_path)
    return _document(_text(path), path).summary


def sources_of(name_or_path: str | Path) -> tuple[Path, ...]:
    """Return the files that a profile's graph depends on, this package's own code and models apart."""
    path = find_profile(str(name_or_path))
    document = _document(_text(path), path)
    tables = document.host if isinstance(document.host, list) else [document.host]
    included = [find_profile(_beside(path, table.include)) for table in tables if table.include]
    return tuple(dict.fromkeys([path, *included]))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ProfileError(f"{path}:{line}: not UTF-8 text", hint="TOML is UTF-8") from None
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror or error}", hint="hal-mock profiles") from None


def _document(text: str, path: Path) -> Profile:
    import tomllib

    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
        line = int(found.group(1)) if found and found.group(1) else max(1, len(text.splitlines()))
        message = str(error)[: found.start()] if found else str(error)
        raise ProfileError(f"{path}:{line}: {message}", hint="https://toml.io") from None
    except (ValueError, RecursionError) as error:  # a date that is none, brackets a thousand deep
        raise ProfileError(f"{path}:1: {error}", hint="https://toml.io") from None
    try:
        return convert(values, Profile, ())
    except Mistake as mistake:
        _blame(text, path, mistake)


def _blame(text: str, path: Path, mistake: Mistake) -> NoReturn:
    from hal_mocks.profile_lines import line_at, lines_of

    line = line_at(lines_of(text), mistake.path)
    where = ".".join(part for part in mistake.path if isinstance(part, str))
    raise ProfileError(
        f"{path}:{line}: {where + ': ' if where else ''}{mistake.message}", hint=mistake.hint or None
    ) from None


def _hosts(document: Profile, path: Path, seed: int, profile: str) -> tuple[Host, ...]:
    from hal_mocks.profile_build import build_host

    if isinstance(document.host, HostTable) and not document.host.include:
        template = build_host(document, document.host)
        return tuple(_instances(template, document.host, ("host",), seed, profile, {}, set()))
    single = isinstance(document.host, HostTable)
    hosts: list[Host] = []
    numbers: dict[str, int] = {}
    names: set[str] = set()
    for index, table in enumerate([document.host] if isinstance(document.host, HostTable) else document.host):
        where: Where = ("host",) if single else ("host", index)
        template, source = _included(document, table, where, path)
        hosts += _instances(template, table, where, seed, source, numbers, names)
    if not hosts:
        raise Mistake(("host",), "a machine has at least one host", '[[host]] include = "dgx-h100"')
    return tuple(hosts)


def _included(document: Profile, table: HostTable, where: Where, path: Path) -> tuple[Host, str]:
    """Return the host of another profile as a template, and that profile's name."""
    from hal_mocks.profile_build import build_host

    if not table.include:
        raise Mistake(where, "one of several hosts must say which profile it is", 'include = "dgx-h100"')
    for section in ("numa", "switch", "gpu", "rnic", "dpu", "nic", "nvme", "pci", "pmem", "upmem", "quirk"):
        if getattr(document, section):
            raise Mistake((section,), f"[[{section}]] has no host here, where all hosts are included")
    for key in ("cpu", "distances"):
        if getattr(table, key):
            raise Mistake((*where, key), f"{key} belongs in the profile that is included")
    try:
        source = find_profile(_beside(path, table.include))
    except ProfileError as error:
        raise Mistake((*where, "include"), error.message, error.hint or "") from None
    text = _text(source)
    other = _document(text, source)
    if not isinstance(other.host, HostTable) or other.host.include:
        raise Mistake((*where, "include"), f"{table.include!r} includes profiles itself", "one that describes a host")
    try:
        return build_host(other, other.host), source.stem
    except Mistake as mistake:
        _blame(text, source, mistake)


def _instances(
    template: Host,
    table: HostTable,
    where: Where,
    seed: int,
    profile: str,
    numbers: dict[str, int],
    names: set[str],
) -> Iterator[Host]:
    """Yield ``count`` hosts of one kind: named ``<rack>-n<number>`` in a rack, by the profile outside of one."""
    from hal_mocks.profile_each import text_for
    from hal_mocks.profile_identity import identify

    for index in range(table.count):
        rack = text_for(table.rack, index, (*where, "rack"))
        numbers[rack] = numbers.get(rack, 0) + 1
        name = text_for(table.name, index, (*where, "name"))
        if not name:
            base = f"{rack}-n" if rack else f"{profile}-"
            name = profile if not rack and table.count == 1 and not names else f"{base}{numbers[rack]}"
        if not _NAME.fullmatch(name):
            raise Mistake((*where, "name"), f"{name!r} is no name for a host", "letters, digits, dots and dashes")
        if rack and not _NAME.fullmatch(rack):
            raise Mistake((*where, "rack"), f"{rack!r} is no name for a rack", "letters, digits, dots and dashes")
        if name in names:
            raise Mistake((*where, "name"), f"two hosts are called {name!r}", 'name = "node{i}"')
        if len(names) >= _MOST_HOSTS:
            raise Mistake((*where, "count"), f"more than {_MOST_HOSTS} hosts")
        names.add(name)
        yield identify(msgspec.structs.replace(template, name=name, rack=rack), seed, profile)


def _beside(path: Path, name: str) -> str:
    """Return an included profile's name: a file is looked for beside the one that includes it."""
    return str(path.parent / name) if name.endswith(".toml") else name
