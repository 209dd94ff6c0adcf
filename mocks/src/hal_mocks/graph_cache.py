"""Graphs kept in the state folder, so that a command need not read TOML: true as long as no source file changed."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from hal_mocks.graph import Graph

Source = tuple[str, int, int]


class Header(msgspec.Struct, frozen=True):
    """The first line of a cached graph: what it was made from, and its hash."""

    profile: str
    seed: int
    code: str
    sources: tuple[Source, ...]
    key: str


_HEADER = msgspec.json.Decoder(Header)
_GRAPH = msgspec.msgpack.Decoder(Graph)
_seen: dict[str, Graph] = {}


def graph_key(graph: Graph) -> str:
    """Return a hash of everything in a graph."""
    from hashlib import blake2b

    return blake2b(msgspec.msgpack.encode(graph), digest_size=16).hexdigest()


def code_stamp() -> str:
    """Return when the code and the models that make graphs and trees last changed."""
    package = Path(__file__).parent
    latest = 0
    for folder in (package, package / "profiles" / "models"):
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(("profile", "sysfs", "graph")) or folder is not package:
                    latest = max(latest, entry.stat().st_mtime_ns)
    return str(latest)


def cached_header(folder: Path, profile: str, seed: int) -> Header | None:
    """Return the header of the folder's cached graph, or None if it is of something else or out of date."""
    try:
        with (folder / "graph.cache").open("rb") as file:
            header = _HEADER.decode(file.readline())
    except (OSError, msgspec.MsgspecError):
        return None
    if header.profile != profile or header.seed != seed or header.code != code_stamp():
        return None
    return header if all(_source(path) == (path, *rest) for path, *rest in header.sources) else None


def load_graph(folder: Path, profile: str, seed: int) -> tuple[Graph, str]:
    """Return a profile's graph and its hash, from the cache if that is true."""
    header = cached_header(folder, profile, seed)
    if header is not None:
        graph = _seen.get(header.key)
        if graph is None:
            try:
                graph = _GRAPH.decode((folder / "graph.cache").read_bytes().partition(b"\n")[2])
            except (OSError, msgspec.MsgspecError):
                graph = None
        if graph is not None:
            _remember(header.key, graph)
            return graph, header.key
    from hal_mocks.profile import load_profile, sources_of

    graph = load_profile(profile, seed)
    key = graph_key(graph)
    _remember(key, graph)
    sources = tuple(_source(str(path.resolve())) for path in sources_of(profile))
    fresh = Header(profile, seed, code_stamp(), sources, key)
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"graph.cache.{os.getpid()}"
    new.write_bytes(msgspec.json.encode(fresh) + b"\n" + msgspec.msgpack.encode(graph))
    new.replace(folder / "graph.cache")
    return graph, key


def _remember(key: str, graph: Graph) -> None:
    if len(_seen) > 8:
        _seen.clear()
    _seen[key] = graph


def _source(path: str) -> Source:
    try:
        found = os.stat(path)
    except OSError:
        return (path, 0, -1)
    return (path, found.st_mtime_ns, found.st_size)
