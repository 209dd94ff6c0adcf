"""Which libucp is used, and loading it once a process.

Two can be had: PyPI's ``libucx`` wheel, which knows shared memory and TCP and can never reach an HCA, and the system's
(Debian: ``libucx0``), which can. ``HAL_RDMA_UCX=wheel|system`` chooses; without it a software NIC takes the wheel where
it is installed, and an HCA takes the system's. A process can hold only one: both are ``libucp.so.0``.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from hal.errors import InvalidArgument, NotReady, OutOfMemory, TransferError
from hal_rdma.ucx import declarations as c

CHOICE = "HAL_RDMA_UCX"
"""The variable that says which library is used: ``wheel`` or ``system``."""

WHEEL, SYSTEM = "wheel", "system"
_HINT = "pip install rackhal-rdma[ucx] (libucx), or apt install libucx0"
_QUIET = {"UCX_HANDLE_ERRORS": "none", "UCX_LOG_LEVEL": "fatal", "UCX_LOG_FILE": "stderr"}
"""What UCX reads once, while it is loaded: it must not take over the process's signals, nor write to its output."""
_API = (1, 13)
_SONAME = "libucp.so.0"


class Atomics(NamedTuple):
    """The processor's atomic instructions, as GCC's libatomic gives them."""

    fetch_add: Any
    compare_exchange: Any
    fence: Any


class Library(NamedTuple):
    """A loaded libucp. ``atomics`` is GCC's libatomic, where it is installed; ``origin`` is ``wheel`` or ``system``."""

    ffi: Any
    ucp: Any
    ucs: Any
    atomics: Atomics | None
    origin: str
    path: str
    version: tuple[int, int, int]

    @property
    def words(self) -> str:
        """The library as one line."""
        return f"UCX {'.'.join(map(str, self.version))} ({self.origin}: {self.path})"

    def describe(self, status: int) -> str:
        """Return a status as UCX says it."""
        text: bytes = self.ffi.string(self.ucs.ucs_status_string(status))
        return f"{text.decode()} ({status})"

    def address_of(self, view: memoryview | bytes) -> int:
        """Return where a buffer's bytes are; whoever uses it keeps the buffer, which then neither moves nor ends.

        cffi's own object is let go at once: the collector cannot take one that is part of a cycle.
        """
        with self.ffi.from_buffer(view) as held:
            return int(self.ffi.cast("uintptr_t", held))

    def check(self, status: int, call: str, *, device: str, during: str) -> None:
        """Raise for a negative status: ``OutOfMemory`` or ``TransferError`` with what UCX says."""
        if status >= 0:
            return
        if status == c.NO_MEMORY:
            raise OutOfMemory(
                f"{call}: {self.describe(status)}",
                device=device,
                during=during,
                hint="less memory, or a larger /dev/shm",
            )
        raise TransferError(
            f"{call}: {self.describe(status)}",
            device=device,
            during=during,
            hint="see that both sides still run and use the same transports",
            code=status,
        )


_lock = Lock()
_loaded: Library | None = None


def choose_library(environ: Mapping[str, str], *, software: bool) -> str:
    """Return ``wheel`` or ``system``: what is asked for, else what can do it and is there. Loads nothing.

    Raises ``InvalidArgument`` for a choice nobody knows, ``NotReady`` where no library can do it.
    """
    asked = environ.get(CHOICE, "").strip().lower()
    if asked not in ("", WHEEL, SYSTEM):
        raise InvalidArgument(
            f"{CHOICE}={asked!r} names no library", during="open", hint=f"{CHOICE}=wheel|system, or unset it"
        )
    order = (asked,) if asked else (WHEEL, SYSTEM) if software else (SYSTEM,)
    if not software and asked == WHEEL:
        raise NotReady("PyPI's libucx is built without verbs and reaches no HCA", during="open", hint=f"unset {CHOICE}")
    for origin in order:
        if _wheel_path() is not None if origin == WHEEL else _system_has(environ):
            return origin
    raise NotReady(f"no libucp ({' or '.join(order)})", during="open", hint=_HINT)


def _wheel_path() -> Path | None:
    found = importlib.util.find_spec("libucx")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "lib" / "libucp.so"
    return path if path.exists() else None


def _system_has(environ: Mapping[str, str]) -> bool:
    """Say whether the loader would find libucp.so.0, without asking it: that takes processes of their own."""
    folders = [*environ.get("LD_LIBRARY_PATH", "").split(":"), "/lib", "/usr/lib", "/usr/lib64", "/usr/local/lib"]
    if any(Path(folder, _SONAME).exists() for folder in folders if folder):
        return True
    try:
        return _SONAME.encode() + b"\0" in Path("/etc/ld.so.cache").read_bytes()
    except OSError:
        return False


def load_library(origin: str) -> Library:
    """Return the library, loaded. Raises ``NotReady`` if it cannot be, or if the process holds the other one."""
    global _loaded
    with _lock:
        if _loaded is None:
            _loaded = _load(origin)
        if _loaded.origin != origin:
            raise NotReady(
                f"this process has loaded {_loaded.words} already, and two do not fit into one process",
                during="open",
                hint=f"set {CHOICE}={origin} before the first NIC is opened",
            )
        return _loaded


def _load(origin: str) -> Library:
    try:
        from cffi import FFI
    except ImportError as error:
        raise NotReady(f"cffi cannot be imported: {error}", during="open", hint="pip install cffi") from error
    ffi = FFI()
    ffi.cdef(c.UCP)
    ffi.cdef(c.UCS)
    ffi.cdef(c.ATOMIC)
    try:
        with _reading(_QUIET):
            if origin == WHEEL:
                import libucx

                libucx.load_library()
                path = str(_wheel_path())
                ucs = ffi.dlopen(str(Path(path).with_name("libucs.so")))
            else:
                path = _SONAME
                ucs = ffi.dlopen("libucs.so.0")
            ucp = ffi.dlopen(path)
    except (OSError, ImportError) as error:
        raise NotReady(f"libucp cannot be loaded: {error}", during="open", hint=_HINT) from error
    numbers = [ffi.new("unsigned*") for _ in range(3)]
    ucp.ucp_get_version(*numbers)
    version = (int(numbers[0][0]), int(numbers[1][0]), int(numbers[2][0]))
    if version[:2] < _API:
        raise NotReady(f"libucp {version} is older than {_API}", during="open", hint="pip install rackhal-rdma[ucx]")
    return Library(ffi, ucp, ucs, _load_atomics(ffi), origin, path, version)


@contextmanager
def _reading(settings: Mapping[str, str]) -> Iterator[None]:
    """Let the environment hold these while a library reads it, where the user has not said otherwise."""
    added = [name for name in settings if name not in os.environ]
    os.environ.update({name: settings[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _load_atomics(ffi: Any) -> Atomics | None:
    try:
        loaded = ffi.dlopen("libatomic.so.1")
        return Atomics(
            getattr(loaded, "__atomic_fetch_add_8"),
            getattr(loaded, "__atomic_compare_exchange_8"),
            loaded.atomic_thread_fence,
        )
    except (OSError, AttributeError):
        return None
