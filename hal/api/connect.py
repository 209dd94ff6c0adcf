"""The broker of this machine, wherever it is: the server's if one answers for the state folder, else one of our own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hal.api.folders import folders

if TYPE_CHECKING:
    from hal.api.client import Client
    from hal.api.local import LocalBroker

SOCKET = "hal.sock"
ADDRESS = "HAL_SERVER"
"""The variable that names a server: a path, ``unix:/PATH``, or ``http(s)://HOST:PORT``; empty for none."""
TOKEN = "HAL_TOKEN"


def socket_path(environ: Mapping[str, str] | None = None, state: str | os.PathLike[str] | None = None) -> Path:
    """Return where the server for a state folder listens."""
    return folders(environ, state).runtime / SOCKET


def find_server(
    environ: Mapping[str, str] | None = None, state: str | os.PathLike[str] | None = None
) -> str | os.PathLike[str] | None:
    """Return the address of the server for a state folder, None if there is none.

    ``HAL_SERVER`` names one, wherever it is. A socket file that a dead server left behind counts as none.
    """
    from hal.api.server.listen import answers

    environ = os.environ if environ is None else environ
    named = environ.get(ADDRESS)
    if named is not None and state is None:
        return named or None
    path = socket_path(environ, state)
    try:
        there = path.is_socket()
    except OSError:
        return None
    return path if there and answers(path) else None


def connect(
    environ: Mapping[str, str] | None = None,
    state: str | os.PathLike[str] | None = None,
    *,
    deadline_seconds: float = 5.0,
    timeout_seconds: float = 30.0,
) -> Client | LocalBroker:
    """Return the broker of this machine: through the server's socket if one answers, else opened in this process.

    ``HAL_TOKEN`` is shown to a server that ``HAL_SERVER`` names.
    """
    environ = os.environ if environ is None else environ
    address = find_server(environ, state)
    if address is None:
        from hal.api.opening import open_broker

        return open_broker(environ, state, deadline_seconds=deadline_seconds)
    from hal.api.client import Client

    return Client(address, token=environ.get(TOKEN) or None, timeout_seconds=timeout_seconds)
