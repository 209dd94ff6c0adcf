"""Registered memory by verbs: the owner's region, and short registrations for buffers that are used once."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from hal.errors import InvalidArgument, OutOfMemory
from hal.interfaces.rnic import Access
from hal_rdma.buffers import address_of, as_bytes
from hal_rdma.verbs.wire import RemoteKey, pack_key

if TYPE_CHECKING:
    from hal.interfaces.rnic import Writable
    from hal_rdma.verbs.binding import Verbs

_REMOTE_CHANGES = Access.REMOTE_WRITE | Access.REMOTE_ATOMIC


class VerbsRegion:
    """See :class:`hal.interfaces.rnic.Region`. New memory is anonymous pages, which outlive the registration while
    somebody holds a view.
    """

    def __init__(
        self,
        verbs: Verbs,
        domain: Any,
        memory: Writable | int,
        access: Access,
        *,
        device: str,
        session: bytes,
        forget: Callable[[VerbsRegion], object],
    ) -> None:
        if access & _REMOTE_CHANGES and not access & Access.LOCAL_WRITE:
            raise InvalidArgument(
                "remote writes and atomics need local writing too",
                device=device,
                during="register",
                hint="add Access.LOCAL_WRITE",
            )
        self.view = _view(memory, access, device)
        self.address = address_of(self.view)
        self.length_bytes = self.view.nbytes
        self.access = access
        self._forget = forget
        self._registration: Any = register(verbs, domain, self.address, self.length_bytes, access, device)
        self.lkey: int = self._registration.lkey
        self.rkey = pack_key(
            RemoteKey(self.address, self.address + self.length_bytes, access, self._registration.rkey, session)
        )

    def close(self) -> None:
        """Deregister. The view stays valid while it is held."""
        registration, self._registration = self._registration, None
        if registration is not None:
            self._forget(self)
            registration.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _view(memory: Writable | int, access: Access, device: str) -> memoryview:
    if not isinstance(memory, int):
        view = as_bytes(memory, device, "register", writable=bool(access & Access.LOCAL_WRITE))
        size = view.nbytes
    else:
        size = int(memory)
    if size <= 0:
        raise InvalidArgument(
            f"{size} bytes cannot be registered", device=device, during="register", hint="give at least one byte"
        )
    if not isinstance(memory, int):
        return view
    try:
        return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    except (OSError, OverflowError, ValueError) as error:
        raise OutOfMemory(
            f"{size} bytes cannot be had: {error}", device=device, during="register", hint="register less"
        ) from None


def register(verbs: Verbs, domain: Any, address: int, length: int, access: Access, device: str) -> Any:
    """Return the NIC's registration of memory. Raises ``OutOfMemory`` where it may pin no more."""
    try:
        return verbs.MR(domain, length, int(access), address)
    except verbs.Error as error:
        with contextlib.suppress(AttributeError):
            error.add_note(f"{length} bytes at {address:#x}")
        raise OutOfMemory(
            f"the NIC refuses to register {length} bytes: {error}",
            device=device,
            during="register",
            hint="raise the limit of locked memory (ulimit -l), or register less",
        ) from error
