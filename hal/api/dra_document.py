"""The shapes of ``resource.k8s.io`` documents, as strict as the API server: an unknown field is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from hal.errors import ClaimError

GROUP = "resource.k8s.io"
Shape = TypeVar("Shape")
VERSIONS = ("v1", "v1beta2", "v1beta1")


class _Strict(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    pass


class Cel(_Strict, frozen=True):
    """One expression."""

    expression: str


class Selector(_Strict, frozen=True):
    """One selector; CEL is the only sort there is."""

    cel: Cel


class Toleration(_Strict, frozen=True):
    """What taint a request can live with."""

    key: str = ""
    operator: str | None = None
    value: str = ""
    effect: str = ""
    toleration_seconds: int | None = None


class Capacity(_Strict, frozen=True):
    """How much of each capacity a request needs."""

    requests: dict[str, str | int | float] = {}


class Choice(_Strict, frozen=True):
    """What ``exactly`` holds, one of ``firstAvailable``, and in v1beta1 the request itself."""

    device_class_name: str = ""
    name: str = ""
    selectors: tuple[Selector, ...] = ()
    allocation_mode: str | None = None
    count: int | None = None
    admin_access: bool | None = None
    tolerations: tuple[Toleration, ...] = ()
    capacity: Capacity = Capacity()


class Request(Choice, frozen=True):
    """A request of any version."""

    exactly: Choice | None = None
    first_available: tuple[Choice, ...] = ()


class Constraint(_Strict, frozen=True):
    """What the devices of some requests have in common, or must not have."""

    requests: tuple[str, ...] = ()
    match_attribute: str | None = None
    distinct_attribute: str | None = None


class Devices(_Strict, frozen=True):
    """All that is asked."""

    requests: tuple[Request, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    config: tuple[Any, ...] = ()


class ClaimSpec(_Strict, frozen=True):
    """The spec of a ResourceClaim."""

    devices: Devices = Devices()


class TemplateSpec(_Strict, frozen=True):
    """The spec of a ResourceClaimTemplate."""

    spec: ClaimSpec
    metadata: dict[str, Any] = {}


class ClassSpec(_Strict, frozen=True):
    """The spec of a DeviceClass."""

    selectors: tuple[Selector, ...] = ()
    config: tuple[Any, ...] = ()
    extended_resource_name: str = ""


class DeviceClass(msgspec.Struct, frozen=True):
    """A class and its name."""

    name: str
    spec: ClassSpec


class _Document(_Strict, frozen=True):
    api_version: str
    kind: str
    metadata: dict[str, Any] = {}
    spec: dict[str, Any] = {}
    status: Any = None


def read_claim_document(document: Mapping[str, Any]) -> tuple[str, str, str, ClaimSpec]:
    """Return kind, name, namespace and spec of a ResourceClaim or a ResourceClaimTemplate."""
    envelope = _envelope(document)
    name, namespace = (
        str(envelope.metadata.get("name") or "claim"),
        str(envelope.metadata.get("namespace") or "default"),
    )
    if envelope.kind == "ResourceClaim":
        return envelope.kind, name, namespace, _spec(envelope, ClaimSpec)
    if envelope.kind == "ResourceClaimTemplate":
        return envelope.kind, name, namespace, _spec(envelope, TemplateSpec).spec
    raise ClaimError(
        f"this is a {envelope.kind}", device=name, during="read", hint="ResourceClaim or ResourceClaimTemplate"
    )


def read_class_document(document: Mapping[str, Any]) -> DeviceClass:
    """Return a DeviceClass."""
    envelope = _envelope(document)
    name = str(envelope.metadata.get("name") or "")
    if envelope.kind != "DeviceClass":
        raise ClaimError(f"this is a {envelope.kind}", device=name, during="read", hint="DeviceClass")
    return DeviceClass(name, _spec(envelope, ClassSpec))


def _envelope(document: Mapping[str, Any]) -> _Document:
    found = _convert(document, _Document, "the document")
    group, _, version = found.api_version.partition("/")
    if group != GROUP or version not in VERSIONS:
        raise ClaimError(
            f"apiVersion is {found.api_version!r}",
            device=f"{found.kind} {found.metadata.get('name', '')}",
            during="read",
            hint=", ".join(f"{GROUP}/{version}" for version in VERSIONS),
        )
    return found


def _spec(envelope: _Document, shape: type[Shape]) -> Shape:
    return _convert(envelope.spec, shape, f"{envelope.kind} {envelope.metadata.get('name', '')}")


def _convert(value: Any, shape: type[Shape], what: str) -> Shape:
    try:
        return msgspec.convert(value, shape)
    except (msgspec.ValidationError, TypeError, RecursionError) as error:
        raise ClaimError(str(error), device=what, during="read", hint="as in resource.k8s.io/v1") from error
