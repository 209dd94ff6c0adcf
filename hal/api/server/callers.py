"""Who is asking, on whose account, and what they may see."""

from __future__ import annotations

import grp
import pwd
from functools import lru_cache

import msgspec

from hal.api.server.config import Config
from hal.api.server.peers import Peer
from hal.api.tokens import read_token
from hal.api.wire import Forbidden, Unauthenticated

_URI = "hal:tenant:"
_OPERATOR_URI = "hal:operator:"


class Caller(msgspec.Struct, frozen=True):
    """Who is asking: a tenant, or an operator, who may see and touch everything.

    With ``claim`` they may touch the claim of that id alone.
    """

    tenant: str
    operator: bool
    name: str
    by: str
    claim: str | None = None

    @property
    def scope(self) -> str | None:
        """The tenant to narrow a verb to; None for an operator, who sees everybody's."""
        return None if self.operator else self.tenant

    def covers(self, tenant: str) -> bool:
        """Whether that tenant is this one or below it."""
        return self.operator or tenant == self.tenant or tenant.startswith(self.tenant + "/")

    def narrowed(self, asked: str | None) -> str | None:
        """Return the tenant to look at when ``asked`` was named: never more than this caller may see."""
        if asked is None or self.operator:
            return self.scope if asked is None else asked
        if self.covers(asked):
            return asked
        return self.tenant if self.tenant.startswith(asked + "/") else NOBODY

    def account(self, stated: str) -> str:
        """Return on whose account a claim goes: as it says, if that is this tenant's or below, else this tenant's."""
        return stated if self.covers(stated) else self.tenant

    def must_operate(self, verb: str) -> None:
        """Raise :class:`~hal.api.wire.Forbidden` unless this is an operator."""
        if not self.operator:
            raise Forbidden(f"{self.tenant} is no operator", during=verb, hint="ask an operator of this machine")


NOBODY = "\x00nobody"
"""A tenant that there cannot be: control characters are refused in their names."""


class Callers:
    """Knows everybody by the kernel's, a certificate's or a token's word; what a request says itself counts nothing."""

    def __init__(self, config: Config, key: bytes | None) -> None:
        self._config = config
        self._key = key
        self._by_uid = lru_cache(maxsize=4096)(self._of_uid)
        self._by_token = lru_cache(maxsize=4096)(self._read)

    def identify(self, peer: Peer, authorization: str | None, now: float) -> Caller:
        """Return who it is, or raise :class:`~hal.api.wire.Unauthenticated`.

        A token that is shown counts more than the connection it comes by; one that is not good is never overlooked.
        """
        if authorization is not None:
            return self._of_token(authorization, now)
        if peer.uid is not None:
            return self._by_uid(peer.uid)
        if peer.secure and (peer.uris or peer.subject):
            return self._of_certificate(peer)
        raise Unauthenticated(
            "there is neither a client certificate nor a token",
            during="authenticate",
            hint="Authorization: Bearer TOKEN (hal token make, on the server), or a client certificate",
        )

    def _of_uid(self, uid: int) -> Caller:
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            name = f"uid-{uid}"
        operator = uid == 0 or name in self._config.operators or self._in_group(name)
        return Caller(self._config.users.get(name, f"users/{name}"), operator, name, "unix")

    def _in_group(self, name: str) -> bool:
        """Whether a user belongs to one of the operators' groups, written ``@wheel``."""
        for word in self._config.operators:
            if word.startswith("@"):
                try:
                    group = grp.getgrnam(word[1:])
                    if name in group.gr_mem or pwd.getpwnam(name).pw_gid == group.gr_gid:
                        return True
                except KeyError:
                    continue
        return False

    def _of_token(self, authorization: str, now: float) -> Caller:
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer" or not text or self._key is None:
            raise Unauthenticated(
                "no token of that kind is taken here", during="authenticate", hint="Authorization: Bearer TOKEN"
            )
        caller, ends = self._by_token(text.strip())
        if now >= ends:
            raise Unauthenticated("the token is over", during="authenticate", hint="hal token make, on the server")
        return caller

    def _read(self, text: str) -> tuple[Caller, float]:
        assert self._key is not None
        token = read_token(self._key, text)
        return self._named(token.tenant, token.role == "operator", "token", token.claim), token.expires_at

    def _of_certificate(self, peer: Peer) -> Caller:
        for uri in peer.uris:
            if uri.startswith(_OPERATOR_URI):
                return self._named(uri.removeprefix(_OPERATOR_URI), True, "certificate")
            if uri.startswith(_URI):
                return self._named(uri.removeprefix(_URI), False, "certificate")
        name = peer.subject or ""
        if name.startswith(_URI):
            return self._named(name.removeprefix(_URI), False, "certificate")
        tenant = self._config.users.get(name, f"users/{name}")
        return Caller(_checked(tenant), name in self._config.operators, name, "certificate")

    def _named(self, tenant: str, operator: bool, by: str, claim: str | None = None) -> Caller:
        return Caller(_checked(tenant), operator, tenant, by, claim)


def _checked(tenant: str) -> str:
    if not (0 < len(tenant) <= 128 and tenant.isprintable() and "" not in tenant.split("/")):
        raise Unauthenticated(f"{tenant!r} is no tenant", during="authenticate", hint="as in physics/lattice/ada")
    return tenant
