"""One UCP worker with at most one endpoint: the two calls that move it, and the calls that post to it.

A worker belongs to one endpoint of ours, so that ending a connection ends whatever could still come over it. Whoever
calls holds the link's lock.
"""

from __future__ import annotations

import time
from typing import Any

from hal_rdma.ucx import declarations as c
from hal_rdma.ucx.context import Context

_CLOSING_SECONDS = 0.1
_WHOLE_TAG = (1 << 64) - 1


class Worker:
    """A worker and its endpoint. Posting returns 0 for done, a request, or a negative status, as UCX does."""

    def __init__(self, context: Context) -> None:
        library = context.library
        ffi, ucp = library.ffi, library.ucp
        self.context = context
        self.library = library
        params = ffi.new("ucp_worker_params_t*")
        params.field_mask = c.WORKER_THREAD_MODE
        params.thread_mode = c.SERIALIZED
        handle = ffi.new("ucp_worker_h*")
        device = context.device
        with context.lock:
            library.check(
                ucp.ucp_worker_create(context.handle, params, handle),
                "ucp_worker_create",
                device=device,
                during="endpoint",
            )
        context.enter()
        self.handle = handle[0]
        self.ep: Any = None
        self.plain = ffi.new("ucp_request_param_t*")
        self._peer_mode = False
        self._keep: list[Any] = []
        descriptor, text, size = ffi.new("int*"), ffi.new("void**"), ffi.new("size_t*")
        status = ucp.ucp_worker_get_efd(self.handle, descriptor)
        library.check(status, "ucp_worker_get_efd", device=device, during="endpoint")
        self.descriptor: int = descriptor[0]
        status = ucp.ucp_worker_get_address(self.handle, text, size)
        library.check(status, "ucp_worker_get_address", device=device, during="endpoint")
        self.address = bytes(ffi.buffer(text[0], size[0]))
        ucp.ucp_worker_release_address(self.handle, text[0])
        self._posted = ffi.new("ucp_request_param_t*")
        self._posted.op_attr_mask = c.OP_NEVER_AT_ONCE
        self._info = ffi.new("ucp_tag_recv_info_t*")
        self._progress, self._status = ucp.ucp_worker_progress, ucp.ucp_request_check_status

    def connect(self, address: bytes, *, watch: Any = None) -> None:
        """Create the endpoint to a peer's worker; ``watch(status)`` is called when UCX notices that it is lost."""
        ffi = self.library.ffi
        params, handle = ffi.new("ucp_ep_params_t*"), ffi.new("ucp_ep_h*")
        told = ffi.from_buffer(address)
        params.field_mask = c.EP_REMOTE_ADDRESS | c.EP_ERR_MODE
        params.address = told
        if watch is not None:
            params.field_mask |= c.EP_ERR_HANDLER
            params.err_mode = c.ERR_MODE_PEER
            callback = ffi.callback("ucp_err_handler_cb_t", lambda _arg, _ep, status: watch(status))
            params.err_handler.cb = callback
            self._keep.append(callback)
            self._peer_mode = True
        self.library.check(
            self.library.ucp.ucp_ep_create(self.handle, params, handle),
            "ucp_ep_create",
            device=self.context.device,
            during="connect",
        )
        self.ep = handle[0]

    def progress(self) -> int:
        """Move what can be moved; how much it was."""
        moved: int = self._progress(self.handle)
        return moved

    def arm(self) -> bool:
        """Let the descriptor become readable at the next event; False if there is something to do already."""
        return bool(self.library.ucp.ucp_worker_arm(self.handle) == c.OK)

    def status(self, request: int) -> int:
        """Return a request's status, and free it unless it still runs."""
        status: int = self._status(request)
        if status != c.INPROGRESS:
            self.library.ucp.ucp_request_free(request)
        return status

    def send(self, data: Any, length: int, tag: int) -> int:
        """Send a message."""
        request: int = self.library.ucp.ucp_tag_send_nbx(self.ep, data, length, tag, self.plain)
        return request

    def receive(self, data: Any, length: int, tag: int) -> int:
        """Post a buffer for the next message of that tag."""
        request: int = self.library.ucp.ucp_tag_recv_nbx(self.handle, data, length, tag, _WHOLE_TAG, self._posted)
        return request

    def received(self, request: int) -> tuple[int, int]:
        """Return a posted receive's status and, if it is 0, the message's length; it is freed unless it still runs."""
        status: int = self.library.ucp.ucp_tag_recv_request_test(request, self._info)
        length: int = self._info.length
        if status != c.INPROGRESS:
            self.library.ucp.ucp_request_free(request)
        return status, length

    def take(self, tag: int, most: int) -> bytes | None:
        """Take the next message of that tag out of those that came unasked; None if there is none."""
        ffi, ucp = self.library.ffi, self.library.ucp
        message = ucp.ucp_tag_probe_nb(self.handle, tag, _WHOLE_TAG, 1, self._info)
        if message == ffi.NULL:
            return None
        length = self._info.length
        into = ffi.new("char[]", max(length, 1))
        request = ucp.ucp_tag_msg_recv_nbx(self.handle, into, length, message, self.plain)
        while request > 0 and self.status(request) == c.INPROGRESS:  # a short message: it is here already
            self.progress()
        return bytes(ffi.buffer(into, min(length, most)))

    def cancel(self, request: int) -> None:
        """Take back a posted receive."""
        self.library.ucp.ucp_request_cancel(self.handle, request)

    def free(self, request: int) -> None:
        """Give a request back, whether it has ended or not; nobody asks for its status again."""
        self.library.ucp.ucp_request_free(request)

    def flush(self) -> int:
        """Ask for everything posted before to be at the target."""
        request: int = self.library.ucp.ucp_ep_flush_nbx(self.ep, self.plain)
        return request

    def destroy(self, *, quietly: bool) -> None:
        """End the endpoint and the worker; ``quietly`` gives a living peer a moment to take what is under way."""
        ffi, ucp = self.library.ffi, self.library.ucp
        if self.ep is not None and (quietly or self._peer_mode):
            params = ffi.new("ucp_request_param_t*")
            if self._peer_mode and not quietly:
                params.op_attr_mask, params.flags = c.OP_FLAGS, c.EP_CLOSE_FORCE
            request = ucp.ucp_ep_close_nbx(self.ep, params)
            until = time.monotonic() + _CLOSING_SECONDS
            while request > 0 and self._status(request) == c.INPROGRESS and time.monotonic() < until:
                self.progress()
            if request > 0:
                ucp.ucp_request_free(request)  # also of one that still runs: the worker ends it
        with self.context.lock:
            ucp.ucp_worker_destroy(self.handle)
        self.context.leave()
