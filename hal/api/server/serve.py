"""A server from start to stop: the broker, its sockets, its heart, and a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from hal.api.server.app import App
from hal.api.server.bell import Bell
from hal.api.server.callers import Callers
from hal.api.server.config import Config
from hal.api.server.heart import Heart
from hal.api.server.listen import listen_tcp, listen_unix, server_tls
from hal.api.server.peers import protocol
from hal.api.server.verbs import Trail, Verbs
from hal.api.surface import Broker
from hal.api.tokens import read_key
from hal.model.device import Device

_LOG = logging.getLogger(__name__)
_GRACE_SECONDS = 10
_HANDSHAKE_SECONDS = 10.0
_SWITCH_SECONDS = 0.001
"""How long a thread that computes keeps the others waiting: an answer shall not lie while the next batch is decided."""
_COLLECT_AFTER = (20_000, 20, 50)
"""New objects until the collector looks for cycles (``gc.set_threshold``): what a claim leaves nearly always stays."""


class _Uvicorn(uvicorn.Server):
    """uvicorn with several listeners, each with its own TLS or none."""

    def __init__(self, config: uvicorn.Config, ends: Sequence[tuple[socket.socket, ssl.SSLContext | None]]) -> None:
        super().__init__(config)
        self._ends = ends
        self.when_ready: Callable[[], None] = lambda: None
        self.when_ending: Callable[[], None] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        await self.lifespan.startup()

        def connected() -> asyncio.Protocol:
            kind: Any = self.config.http_protocol_class
            made: asyncio.Protocol = kind(
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
            )
            return made

        self.servers = []
        for end, tls in self._ends:
            late = _HANDSHAKE_SECONDS if tls is not None else None
            if end.family == socket.AF_UNIX:
                made = await loop.create_unix_server(connected, sock=end, backlog=self.config.backlog)
            else:
                made = await loop.create_server(
                    connected, sock=end, ssl=tls, backlog=self.config.backlog, ssl_handshake_timeout=late
                )
            self.servers.append(made)
        self.started = True
        self.when_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGTERM or SIGINT. uvicorn would send them again at the end, and nothing could be tidied up."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread may
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.when_ending()
        await super().shutdown(sockets)


class Service:
    """The broker behind its sockets; :meth:`run` returns when it was told to stop.

    ``maintain`` does what is due and returns when it is needed next, ``look`` looks at all devices again, ``head``
    returns the journal's revision, ``devices`` what was seen last; ``trail`` reads the audit trail.
    """

    def __init__(
        self,
        broker: Broker,
        config: Config,
        unix: Path,
        *,
        maintain: Callable[[], float | None],
        look: Callable[[], object],
        head: Callable[[], int],
        devices: Callable[[], Sequence[Device]],
        trail: Trail | None = None,
    ) -> None:
        self._config = config
        self._unix = unix
        self._key = read_key(Path(config.token_key)) if config.token_key is not None else None
        self._tls = server_tls(config.tls, tokens=self._key is not None) if config.tls is not None else None
        self.bell = Bell(broker, head)
        self.heart = Heart(maintain, look, config.tick_seconds, config.look_seconds)
        self.verbs = Verbs(broker, config.limits, self.bell, self.heart, devices, trail)
        self.app = App(self.verbs, Callers(config, self._key))
        self.addresses: list[str] = []
        self._server: _Uvicorn | None = None

    def stop(self) -> None:
        """Let :meth:`run` return, from another thread; what was begun is finished first."""
        if self._server is not None:
            self._server.should_exit = True

    def run(self, ready: Callable[[list[str]], None] = lambda addresses: None) -> None:
        """Serve until SIGTERM or SIGINT; ``ready`` is called with the addresses once they answer."""
        ends: list[tuple[socket.socket, ssl.SSLContext | None]] = [(listen_unix(self._unix, self._config.group), None)]
        inode = os.stat(self._unix).st_ino
        try:
            self.addresses = [str(self._unix)]
            if self._config.listen is not None:
                end = listen_tcp(self._config.listen)
                ends.append((end, self._tls))
                host, port = end.getsockname()[:2]
                host = f"[{host}]" if ":" in host else host
                self.addresses.append(f"{'https' if self._tls else 'http'}://{host}:{port}")
            self._serve(ends, ready)
        finally:
            for end, _ in ends:
                end.close()
            with contextlib.suppress(OSError):
                if os.stat(self._unix).st_ino == inode:  # not another server's, which has come meanwhile
                    self._unix.unlink()

    def _serve(self, ends: Sequence[tuple[socket.socket, ssl.SSLContext | None]], ready: Any) -> None:
        config = uvicorn.Config(
            self.app,
            http=protocol(self._config.limits),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # whoever asks is who the kernel or a certificate says
            timeout_keep_alive=round(self._config.limits.idle_seconds),
            timeout_graceful_shutdown=_GRACE_SECONDS,
            backlog=1024,
        )
        server = self._server = _Uvicorn(config, ends)

        def begin() -> None:
            self.bell.start(asyncio.get_running_loop())
            self.heart.start()
            ready(self.addresses)

        server.when_ready = begin
        server.when_ending = self.bell.stop
        before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        # What is there now stays: looking for cycles among 100,000 devices would stop everybody for 0.3 s, again and
        # again.
        gc.collect()
        gc.freeze()
        collected_after = gc.get_threshold()
        gc.set_threshold(*_COLLECT_AFTER)
        try:
            server.run()
        except KeyboardInterrupt:
            _LOG.info("interrupted")
        finally:
            gc.set_threshold(*collected_after)
            gc.unfreeze()
            sys.setswitchinterval(before)
            self.bell.stop()
            self.heart.stop()
            self.verbs.close()
