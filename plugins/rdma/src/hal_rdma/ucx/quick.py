"""The short way through put, get, fetch-add and flush, where the target's memory is mapped here.

It has less time than one bare call of UCX's takes, so it is written out in line, in closures: they find their names
faster than methods do. Whatever is not plain, another buffer type, a deadline, a key that is new or has died, takes the
connection's methods of the same name, which do everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation
from hal_rdma.ucx.operations import finished

if TYPE_CHECKING:
    from hal.interfaces.rnic import Readable, Writable
    from hal_rdma.ucx.connection import UcxConnection
    from hal_rdma.ucx.link import Link


def quick_verbs(connection: UcxConnection, link: Link) -> dict[str, Callable[..., Any]]:
    """Return the verbs of one connection by name."""
    check = link.transport.check
    writes, reads, words = link.targets.writes, link.targets.reads, link.targets.words
    put_long, get_long, add_long = connection.put, connection.get, connection.fetch_add
    flush_long = connection.flush
    device = link.device
    put_done: Operation[None] = finished(device, "put")(None)
    get_done: Operation[None] = finished(device, "get")(None)
    flush_done: Operation[None] = finished(device, "flush")(None)
    counted: Any = finished(device, "fetch_add")
    new: Any = object.__new__
    atomics = link.worker.library.atomics
    add: Any = None if atomics is None else atomics.fetch_add
    barrier = link.transport.barrier

    def put(local: Readable, remote_address: int, rkey: bytes, *, deadline: Deadline | None = None) -> Operation[None]:
        check()
        try:
            base, length, view = writes[rkey]
            kind = type(local)
            if kind is bytearray or kind is bytes or (kind is memoryview and local.c_contiguous):  # type: ignore[union-attr]
                start = remote_address - base
                end = start + len(local)  # type: ignore[arg-type]
                if start >= 0 and end <= length and (deadline is None or not deadline.expired):
                    view[start:end] = local  # type: ignore[assignment]
                    link.out_bytes += end - start
                    return put_done
        except (KeyError, TypeError, ValueError):  # not mapped, not bytes, or a key that has just died
            pass
        return put_long(local, remote_address, rkey, deadline=deadline)

    def get(local: Writable, remote_address: int, rkey: bytes, *, deadline: Deadline | None = None) -> Operation[None]:
        check()
        try:
            base, length, view = reads[rkey]
            kind = type(local)
            if kind is bytearray or (kind is memoryview and local.c_contiguous):  # type: ignore[union-attr]
                start = remote_address - base
                end = start + len(local)  # type: ignore[arg-type]
                if start >= 0 and end <= length and (deadline is None or not deadline.expired):
                    local[:] = view[start:end]  # type: ignore[index]
                    link.in_bytes += end - start
                    return get_done
        except (KeyError, TypeError, ValueError):
            pass
        return get_long(local, remote_address, rkey, deadline=deadline)

    def fetch_add(remote_address: int, rkey: bytes, value: int, *, deadline: Deadline | None = None) -> Operation[int]:
        check()
        try:
            first, last, shift = words[rkey]
            if (
                first <= remote_address <= last
                and not remote_address & 7
                and (deadline is None or not deadline.expired)
            ):
                operation = new(counted)
                operation._result = add(remote_address + shift, value, 5)  # noqa: SLF001 - of a class of ours; 5: SEQ_CST
                return operation  # type: ignore[no-any-return]
        except (KeyError, TypeError, OverflowError):
            pass
        return add_long(remote_address, rkey, value, deadline=deadline)

    def flush(*, deadline: Deadline | None = None) -> Operation[None]:
        check()
        if link.quiet and (deadline is None or not deadline.expired):
            if barrier is not None:
                barrier()
            return flush_done
        return flush_long(deadline=deadline)

    return {"put": put, "get": get, "fetch_add": fetch_add, "flush": flush}
