"""The sockets: a Unix socket that only its owner's group reaches, and TCP with TLS 1.3."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import ssl
import stat
from pathlib import Path

from hal.api.http1 import ShortPath
from hal.api.server.config import Tls, address_of
from hal.errors import BrokerError, UsageError

MODE = 0o660
BACKLOG = 1024


def answers(path: Path) -> bool:
    """Whether a server listens at a Unix socket."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        end.settimeout(2.0)
        with ShortPath(path) as short:
            end.connect(short)
    except OSError as error:
        # Not allowed to ask, or nobody found time to accept: somebody is there all the same.
        return error.errno in (errno.EACCES, errno.EAGAIN) or isinstance(error, TimeoutError)
    else:
        return True
    finally:
        end.close()


def refuse_second(path: Path) -> None:
    """Raise :class:`~hal.errors.BrokerError` if a server listens there already, or something else lies there."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise BrokerError(f"{path} is no socket", during="serve", hint="another --socket PATH")
    if answers(path):
        raise BrokerError(
            f"a server listens on {path} already", during="serve", hint="stop it, or another --socket PATH"
        )


def listen_unix(path: Path, group: str | None = None) -> socket.socket:
    """Return a listening socket at a path, mode 0660; the file of a server that died is replaced in one step."""
    refuse_second(path)
    gid = -1
    if group is not None:
        try:
            gid = grp.getgrnam(group).gr_gid
        except KeyError:
            raise UsageError(f"there is no group {group!r}", during="serve", hint="getent group") from None
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)
        os.fchmod(end.fileno(), 0o600)  # until it is in its place nobody else shall connect
        with ShortPath(beside) as short:
            end.bind(short)
        end.listen(BACKLOG)
        os.chown(beside, -1, gid)
        os.chmod(beside, MODE)
        os.rename(beside, path)
    except OSError as error:
        end.close()
        with contextlib.suppress(OSError):
            beside.unlink()
        raise BrokerError(
            f"{path} cannot be listened on: {error.strerror}", during="serve", hint="another --socket PATH"
        ) from error
    return end


def listen_tcp(listen: str) -> socket.socket:
    """Return a listening socket at ``HOST:PORT``; port 0 is any free one."""
    host, port = address_of(listen)
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        end = socket.socket(family, kind, proto)
    except OSError as error:
        raise UsageError(f"{listen}: {error}", during="serve", hint="127.0.0.1:7443") from error
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        end.bind(address)
        end.listen(BACKLOG)
    except OSError as error:
        end.close()
        raise BrokerError(f"{listen}: {error.strerror}", during="serve", hint="another --listen HOST:PORT") from error
    return end


def server_tls(tls: Tls, *, tokens: bool) -> ssl.SSLContext:
    """Return a context of TLS 1.3 and nothing older; client certificates are demanded unless tokens are taken, too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL if tokens else ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"a certificate or key cannot be read: {error}", during="serve", hint="PEM files, as openssl writes them"
        ) from error
    return context
