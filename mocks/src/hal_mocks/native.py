"""Stand-ins in C: compiled by the machine's compiler on first use, and kept for the next one."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from hal.errors import DriverError, NotReady

FLAGS = ("-std=gnu11", "-O2", "-g", "-fPIC")
"""What everything is compiled with; a flag of the caller comes later and prevails.

No warning stops it: a compiler newer than ours must not keep a user from a stand-in. Our tests stop at any.
"""

_SONAME = "-Wl,-soname,"
"""A library with its name in it is found by that name once a process has loaded it from wherever it is."""

_INSTALL = "apt install gcc libc6-dev, or name a compiler in CC"


def build(
    name: str, sources: Iterable[Path], *, flags: Iterable[str] = (), environ: Mapping[str, str] | None = None
) -> Path:
    """Return the file ``name`` compiled from ``sources``, compiling only if none of the same content is kept.

    A name with ``.so`` in it makes a shared library, another one a program. Of the sources, those that end in ``.c``
    are compiled; the others (headers) only count for what is kept. Flags that begin with ``-l`` go to the linker,
    behind the sources. Each file has a folder of its own, which can be put on ``LD_LIBRARY_PATH``. Any number of
    processes may build at once. Raises ``NotReady`` where there is no compiler, ``DriverError`` where it fails.
    """
    environ = os.environ if environ is None else environ
    sources, flags = tuple(sources), tuple(flags)
    compiler = _compiler(name, environ)
    folder = cache_folder(environ) / f"{name}-{_key(compiler, sources, flags)}"
    made = folder / name
    if made.exists():
        return made
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch, name)
            _compile(compiler, name, fresh, sources, flags)
            fresh.replace(made)
    except OSError as error:
        raise DriverError(
            f"{name} cannot be kept in {folder}: {error.strerror or error}",
            during="build",
            hint="XDG_CACHE_HOME names another folder",
        ) from error
    return made


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return where compiled stand-ins are kept."""
    base = environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base, "hal-mocks")
    home = environ.get("HOME")
    return (Path(home) if home else Path(tempfile.gettempdir(), f"hal-{os.getuid()}")) / ".cache" / "hal-mocks"


def _compiler(name: str, environ: Mapping[str, str]) -> Path:
    wanted = environ.get("CC") or "cc"
    found = shutil.which(wanted, path=environ.get("PATH", os.defpath))
    if found is None:
        raise NotReady(f"{name} is compiled on first use, and there is no C compiler ({wanted})", hint=_INSTALL)
    return Path(found)


def _key(compiler: Path, sources: Iterable[Path], flags: Iterable[str]) -> str:
    # The compiler's own file stands for its version: asking it takes longer than all the rest of a warm start.
    real = compiler.resolve()
    state = real.stat()
    digest = hashlib.sha256(repr((str(real), state.st_size, state.st_mtime_ns, FLAGS, _SONAME, tuple(flags))).encode())
    for source in sources:
        digest.update(f"\0{source.name}\0".encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: Path, name: str, target: Path, sources: Iterable[Path], flags: Iterable[str]) -> None:
    shared = ("-shared", _SONAME + name) if ".so" in name else ()
    libraries = tuple(flag for flag in flags if flag.startswith("-l"))
    command = (
        str(compiler),
        *shared,
        *FLAGS,
        *(flag for flag in flags if flag not in libraries),
        *("-o", str(target)),
        *(str(source) for source in sources if source.suffix == ".c"),
        *libraries,
    )
    try:
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise NotReady(f"{name}: {compiler} cannot be run: {error.strerror or error}", hint=_INSTALL) from error
    if ended.returncode:
        said = [line for line in ended.stderr.splitlines() if "error" in line] or ended.stderr.splitlines()
        missing_headers = any("No such file" in line and ".h" in line for line in said)
        raise DriverError(
            f"{name} was not compiled by {compiler}: {said[0].strip() if said else f'exit {ended.returncode}'}",
            during="build",
            hint="apt install libc6-dev" if missing_headers else _INSTALL,
        )
