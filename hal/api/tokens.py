"""Signed tokens: who may claim on whose account, until when. JSON web tokens (RFC 7519), HMAC with SHA-256.

The key is a file of mode 0600 beside the server; whoever can read it can make tokens for anybody.
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Any

import msgspec

from hal.api.wire import Unauthenticated
from hal.errors import UsageError

KEY_BYTES = 32
LONGEST_SECONDS = 86_400.0
"""A day. Tokens cannot be taken back, so they are short-lived."""
_AUDIENCE = "hal"
_ALGORITHM = "HS256"
_LEEWAY_SECONDS = 5.0


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """What a token says. With ``claim`` it is good for the claim (and lease) of that id alone."""

    tenant: str
    role: str = "tenant"
    expires_at: float = 0.0
    claim: str | None = None


def make_key(path: Path) -> None:
    """Write a new key to a file of mode 0600; a file that is there already is never replaced."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(
            f"the key {path} cannot be made: {error.strerror}", during="token", hint="another --key FILE"
        ) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_hex(KEY_BYTES).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_key(path: Path) -> bytes:
    """Read a key. Raises ``UsageError`` if it is missing, too short, or readable for others than its owner."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4096).strip()
    except OSError as error:
        raise UsageError(
            f"the key {path} cannot be read: {error.strerror}", during="token", hint="hal token key makes one"
        ) from error
    if mode & 0o077:
        raise UsageError(f"others may read the key {path}", during="token", hint=f"chmod 600 {path}")
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) < KEY_BYTES:
        raise UsageError(f"{path} is no key", during="token", hint="hal token key makes one")
    return key


def make_token(
    key: bytes,
    tenant: str,
    seconds: float,
    *,
    role: str = "tenant",
    claim: str | None = None,
    now: float | None = None,
) -> str:
    """Return a token for a tenant, good for so many seconds; ``role`` is ``tenant`` or ``operator``."""
    import jwt

    if role not in ("tenant", "operator"):
        raise UsageError(f"the role is {role!r}", during="token", hint="tenant or operator")
    if not 0 < seconds <= LONGEST_SECONDS:
        raise UsageError(f"{seconds:g} s", during="token", hint=f"above 0 and at most {LONGEST_SECONDS:.0f} s (a day)")
    begun = time.time() if now is None else now
    says: dict[str, Any] = {"aud": _AUDIENCE, "iat": begun, "exp": begun + seconds, "tenant": tenant, "role": role}
    if claim is not None:
        says["claim"] = claim
    return jwt.encode(says, key, algorithm=_ALGORITHM)


def read_token(key: bytes, text: str) -> Token:
    """Return what a token says. Raises :class:`~hal.api.wire.Unauthenticated` for one that is forged, odd or over."""
    import jwt

    try:
        says = jwt.decode(
            text,
            key,
            algorithms=[_ALGORITHM],
            audience=_AUDIENCE,
            leeway=_LEEWAY_SECONDS,
            options={"require": ["exp", "iat", "aud"]},
        )
        if not says["exp"] - says["iat"] <= LONGEST_SECONDS:
            raise ValueError("it is good for longer than a day")
        found = msgspec.convert({**says, "expires_at": says["exp"]}, Token)
        if found.role not in ("tenant", "operator"):
            raise ValueError("it has an unknown role")
    except (jwt.PyJWTError, msgspec.ValidationError, TypeError, ValueError) as error:
        raise Unauthenticated(
            f"the token is not good: {error}", during="authenticate", hint="hal token make, on the server"
        ) from error
    return found
