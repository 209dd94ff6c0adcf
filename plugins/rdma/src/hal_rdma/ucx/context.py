"""One UCP context: which transports, and the memory registered with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from threading import RLock
from typing import Any, NamedTuple

from hal.errors import NotReady
from hal_rdma.ucx import declarations as c
from hal_rdma.ucx.library import Library


class Mapped(NamedTuple):
    """Memory registered with UCX: its address, its packed remote key, and UCX's handle."""

    address: int
    packed: bytes
    handle: Any


class Context:
    """UCP's context of one opened NIC. Calls that touch it take its lock: UCX is not asked to be safe by itself.

    It is cleaned up when it is closed and the last memory has been unmapped, which may be later: somebody may still
    look at memory that UCX has given.
    """

    def __init__(self, library: Library, settings: Mapping[str, str], device: str) -> None:
        self.library = library
        self.device = device
        self.lock = RLock()  # finalizers of memory may run in the thread that holds it
        self._holders = 1
        self._process = os.getpid()
        ffi, ucp = library.ffi, library.ucp
        config = ffi.new("ucp_config_h*")
        self._check(ucp.ucp_config_read(ffi.NULL, ffi.NULL, config), "ucp_config_read")
        try:
            for name, value in settings.items():
                status = ucp.ucp_config_modify(config[0], name.encode(), value.encode())
                self._check(status, f"UCX_{name}={value}")
            params = ffi.new("ucp_params_t*")
            params.field_mask = c.PARAM_FEATURES | c.PARAM_MT_WORKERS_SHARED
            params.features = c.FEATURE_TAG | c.FEATURE_RMA | c.FEATURE_AMO64 | c.FEATURE_WAKEUP
            params.mt_workers_shared = 1
            handle = ffi.new("ucp_context_h*")
            status = ucp.ucp_init_version(1, library.version[1], params, config[0], handle)
            self._check(status, f"ucp_init ({', '.join(f'{k}={v}' for k, v in settings.items())})")
        finally:
            ucp.ucp_config_release(config[0])
        self.handle = handle[0]

    def _check(self, status: int, call: str) -> None:
        if status < 0:
            raise NotReady(
                f"{call}: {self.library.describe(status)}",
                device=self.device,
                during="open",
                hint="name transports that this UCX has: ucx_info -d",
            )

    def map(self, memory: Any, length: int) -> Mapped:
        """Register memory (a cdata pointer), or ``length`` bytes that UCX allocates if there is none."""
        library = self.library
        ffi, ucp = library.ffi, library.ucp
        params = ffi.new("ucp_mem_map_params_t*")
        params.field_mask = c.MAP_ADDRESS | c.MAP_LENGTH | c.MAP_FLAGS
        params.length = length
        if memory is None:
            params.flags = c.MAP_ALLOCATE
        else:
            params.address = memory
        handle, packed, size = ffi.new("ucp_mem_h*"), ffi.new("void**"), ffi.new("size_t*")
        attributes = ffi.new("ucp_mem_attr_t*")
        attributes.field_mask = c.MEM_ADDRESS | c.MEM_LENGTH
        with self.lock:
            library.check(
                ucp.ucp_mem_map(self.handle, params, handle), "ucp_mem_map", device=self.device, during="register"
            )
            try:
                status = ucp.ucp_mem_query(handle[0], attributes)
                library.check(status, "ucp_mem_query", device=self.device, during="register")
                status = ucp.ucp_rkey_pack(self.handle, handle[0], packed, size)
                library.check(status, "ucp_rkey_pack", device=self.device, during="register")
            except BaseException:
                ucp.ucp_mem_unmap(self.handle, handle[0])
                raise
            told = bytes(ffi.buffer(packed[0], size[0]))
            ucp.ucp_rkey_buffer_release(packed[0])
            self._holders += 1
        return Mapped(int(ffi.cast("uintptr_t", attributes.address)), told, handle[0])

    def unmap(self, mapped: Mapped) -> None:
        """Deregister; memory that UCX has allocated is gone. In a forked child it is the parent's, and stays."""
        if os.getpid() != self._process:
            return
        with self.lock:
            self.library.ucp.ucp_mem_unmap(self.handle, mapped.handle)
        self.leave()

    def leave(self) -> None:
        """Let go of the context; the last one cleans it up."""
        with self.lock:
            self._holders -= 1
            if self._holders == 0:
                self.library.ucp.ucp_cleanup(self.handle)

    def enter(self) -> None:
        """Hold the context, for a worker."""
        with self.lock:
            self._holders += 1
