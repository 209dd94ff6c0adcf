"""How a server is set up: sockets, who is who, and limits. Read from TOML; the command line wins."""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from hal.errors import UsageError


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one caller may ask of the server.

    ``claims_per_second`` is a tenant's rate where nothing was said about it (``Tenant.claims_per_second``); so much as
    ``burst_seconds`` of it may come at once. Requests of any kind may come ten times as often. ``most_open_claims`` are
    leases and waiting claims of one tenant together.
    """

    claims_per_second: float = 1000.0
    burst_seconds: float = 2.0
    most_open_claims: int = 10_000
    most_claims_at_once: int = 1000
    most_body_bytes: int = 4 << 20
    most_header_bytes: int = 32 << 10
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    idle_seconds: float = 75.0
    connections_per_user: int = 256
    connections: int = 2048
    longest_wait_seconds: float = 60.0
    streams_per_tenant: int = 64


class Tls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files in PEM: the server's certificate and key, and the authority whose client certificates are believed."""

    certificate: str
    key: str
    client_ca: str | None = None


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole set-up. ``users`` maps login names to tenants, ``operators`` are login names."""

    socket: str | None = None
    group: str | None = None
    listen: str | None = None
    tls: Tls | None = None
    token_key: str | None = None
    users: dict[str, str] = {}
    operators: tuple[str, ...] = ()
    tick_seconds: float = 1.0
    look_seconds: float = 30.0
    limits: Limits = Limits()


def read_config(path: Path | None, **over: Any) -> Config:
    """Return what a TOML file says, with what is given here put over it. Raises ``UsageError`` naming the mistake."""
    document: dict[str, Any] = {}
    if path is not None:
        try:
            document = tomllib.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: {error}", during="serve", hint="a TOML file, see hal serve --check") from error
    document.update({name: value for name, value in over.items() if value is not None})
    try:
        config = msgspec.convert(document, Config)
    except msgspec.ValidationError as error:
        hint = "allowed are " + ", ".join(Config.__struct_fields__)
        raise UsageError(f"{path or 'the options'}: {error}", during="serve", hint=hint) from error
    check_config(config)
    return config


def check_config(config: Config) -> None:
    """Raise ``UsageError`` for a set-up that is not safe, or makes no sense."""
    for user, tenant in config.users.items():
        if not tenant or "" in tenant.split("/") or not tenant.isprintable():
            raise UsageError(f"the tenant of {user} is {tenant!r}", during="serve", hint='ada = "physics/lattice/ada"')
    for name in Limits.__struct_fields__:
        if not getattr(config.limits, name) > 0:
            raise UsageError(f"limits.{name} is {getattr(config.limits, name)}", during="serve", hint="above 0")
    if not (config.tick_seconds > 0 and config.look_seconds > 0):
        raise UsageError("tick_seconds and look_seconds are above 0", during="serve", hint="1.0 and 30.0")
    if config.listen is None:
        return
    host, _ = address_of(config.listen)
    if config.tls is None and config.token_key is None:
        raise UsageError(
            f"nobody could be told from anybody else on {config.listen}",
            during="serve",
            hint="--tls-certificate, --tls-key and --tls-client-ca; or --token-key on a loopback address",
        )
    if config.tls is None and not _is_loopback(host):
        raise UsageError(
            f"tokens would cross the network in the clear on {config.listen}",
            during="serve",
            hint="--tls-certificate and --tls-key, or a loopback address such as 127.0.0.1:7443",
        )
    if config.tls is not None and config.tls.client_ca is None and config.token_key is None:
        raise UsageError(
            "TLS without client certificates and without tokens knows nobody",
            during="serve",
            hint="--tls-client-ca FILE, or --token-key FILE",
        )


def address_of(listen: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; an IPv6 address stands in brackets."""
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdecimal() and int(port) < 65536):
        raise UsageError(f"{listen!r} is no address", during="serve", hint="127.0.0.1:7443 or [::1]:7443")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
