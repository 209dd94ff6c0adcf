"""Kubernetes' documents of dynamic resource allocation (DRA) as claims: ResourceClaim, its template, DeviceClass.

Versions v1, v1beta2 and v1beta1 of ``resource.k8s.io``. What a document says and a claim cannot is an error that names
it, never ignored: a claim granted here means what it would mean there.

================================  ==========================================================================
there                             here
================================  ==========================================================================
device class                      the kind, and its selectors as ``cel`` before the request's own
allocationMode, count             ``count``: a number, or ``all``
firstAvailable                    ``or_else``, each alternative costs one more than the one before
capacity.requests                 ``capacity``; used up (shared) if a selector reads allowMultipleAllocations
tolerations                       ``tolerate``: the key without its domain
matchAttribute, distinctAttribute ``same``, ``distinct``; several devices lie on one node
adminAccess, config, values of    refused
tolerations
================================  ==========================================================================
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from hal.api import dra_document as d
from hal.errors import ClaimError
from hal.model.cel import CelSelector, compile_cel
from hal.model.cel_device import ALLOW_MULTIPLE, AMD, CAPACITIES, DRANET, KUBERNETES, NVIDIA
from hal.model.cel_values import parse_quantity
from hal.model.claim import Claim, Constraint, Count, Locality, Request, Share
from hal.model.kind import Kind

Document = Mapping[str, Any]
KINDS: Mapping[str, Kind] = {NVIDIA: Kind.GPU, AMD: Kind.GPU, DRANET: Kind.RNIC, "gpu.intel.com": Kind.GPU}
"""What the devices of a DRA driver are."""
_USUAL: Mapping[str, str] = {
    "gpu.nvidia.com": f"device.driver == '{NVIDIA}' && device.attributes['{NVIDIA}'].type == 'gpu'",
    "mig.nvidia.com": f"device.driver == '{NVIDIA}' && device.attributes['{NVIDIA}'].type == 'mig'",
    "gpu.amd.com": f"device.driver == '{AMD}'",
    "dra.net": f"device.driver == '{DRANET}'",
    "dranet": f"device.driver == '{DRANET}'",
}
"""The classes that drivers install: they need not be given."""
_OURS = {"numaNode": Locality.NUMA.value, "numa": Locality.NUMA.value}
_DRIVER = re.compile(r"""device\.driver\s*==\s*["']([^"']+)["']""")


def read_documents(text: str) -> tuple[Document, ...]:
    """Return the documents of a YAML or JSON text; lists of objects are taken apart."""
    import yaml  # here: who never sees such a document does not pay for it

    try:
        found = [document for document in yaml.safe_load_all(text) if document is not None]
    except (yaml.YAMLError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise ClaimError(f"this is neither YAML nor JSON: {text}", during="read") from error
    parts: list[Document] = []
    for document in found:
        if not isinstance(document, Mapping):
            raise ClaimError(
                "a document is no object",
                during="read",
                hint="apiVersion, kind, metadata and spec, or the fields of a claim",
            )
        parts += document["items"] if isinstance(document.get("items"), list) else [document]
    return tuple(parts)


def read_claim(
    document: Document,
    classes: Iterable[Document] = (),
    *,
    kinds: Mapping[str, Kind] | None = None,
    id: str | None = None,
    tenant: str | None = None,
    **words: Any,
) -> Claim:
    """Return the claim that a ResourceClaim or a ResourceClaimTemplate stands for.

    ``classes`` are the DeviceClasses it names (those that the drivers of NVIDIA, AMD and dranet install are known);
    ``kinds`` says what a class or a driver is where nothing else does. ``id`` is otherwise namespace and name (and a
    random end for a template), ``tenant`` the namespace. ``words`` are other fields of a claim, which Kubernetes has
    none for: ``priority``, ``ttl_seconds``, ``replicas``… Raises :class:`~hal.errors.ClaimError`, and
    :class:`~hal.errors.SelectorError` for a selector with a mistake.
    """
    kind, name, namespace, spec = d.read_claim_document(document)
    known = {found.name: found for found in map(d.read_class_document, classes)}
    reader = _Reader(known, {**KINDS, **(kinds or {})}, f"{kind} {name}")
    requests = tuple(reader.request(request) for request in spec.devices.requests)
    made = f"{namespace}/{name}" if kind == "ResourceClaim" else f"{namespace}/{name}-{secrets.token_hex(4)}"
    constraints = tuple(reader.constraint(constraint) for constraint in spec.devices.constraints)
    several = len(requests) > 1 or any(choice.count != 1 for r in requests for choice in (r, *r.or_else))
    if several:
        constraints = (Constraint(same=Locality.NODE.value), *constraints)
    if spec.devices.config:
        raise reader.refuse("config is for a driver of Kubernetes and has no effect here", "leave it out")
    return msgspec.convert(
        {
            "id": id if id is not None else made,
            "requests": msgspec.to_builtins(requests),
            "constraints": msgspec.to_builtins(constraints),
            "tenant": tenant if tenant is not None else namespace,
            **msgspec.to_builtins(words),
        },
        Claim,
    )


class _Reader:
    """Reads the requests of one document."""

    def __init__(self, classes: Mapping[str, d.DeviceClass], kinds: Mapping[str, Kind], what: str) -> None:
        self.classes = classes
        self.kinds = kinds
        self.what = what

    def refuse(self, what: str, hint: str | None = None) -> ClaimError:
        return ClaimError(what, device=self.what, during="read", hint=hint)

    def request(self, request: d.Request) -> Request:
        if request.exactly is not None and request.first_available:
            raise self.refuse(f"the request {request.name!r} has both exactly and firstAvailable")
        if request.first_available:
            if request.device_class_name:
                raise self.refuse(f"the request {request.name!r} has both a class and firstAvailable")
            choices = [self.choice(choice, f"{request.name}/{choice.name}") for choice in request.first_available]
            rest = [msgspec.structs.replace(choice, cost=float(cost)) for cost, choice in enumerate(choices[1:], 1)]
            return msgspec.structs.replace(choices[0], name=request.name, or_else=tuple(rest))
        inner = request.exactly if request.exactly is not None else request
        return msgspec.structs.replace(self.choice(inner, request.name), name=request.name)

    def choice(self, asked: d.Choice, name: str) -> Request:
        if asked.admin_access:
            raise self.refuse(f"the request {name!r} asks for adminAccess", "look at devices with hal-probe")
        if not asked.device_class_name:
            raise self.refuse(f"the request {name!r} has no deviceClassName")
        texts = (*self.class_selectors(asked.device_class_name), *[s.cel.expression for s in asked.selectors])
        selectors = [compile_cel(text) for text in texts]
        capacity = {_capacity(n): self.amount(n, amount) for n, amount in asked.capacity.requests.items()}
        shared = bool(capacity) and any((ALLOW_MULTIPLE,) in selector.paths for selector in selectors)
        return Request(
            kind=self.kind(asked.device_class_name, selectors),
            count=self.count(asked, name),
            cel=texts,
            capacity=capacity,
            share=Share.SHARED if shared else Share.EXCLUSIVE,
            tolerate=tuple(dict.fromkeys(self.toleration(toleration) for toleration in asked.tolerations)),
        )

    def count(self, asked: d.Choice, name: str) -> Count:
        if asked.allocation_mode == "All":
            if asked.count is not None:
                raise self.refuse(f"the request {name!r} asks for all, and for {asked.count}")
            return "all"
        if asked.allocation_mode not in (None, "ExactCount"):
            raise self.refuse(f"allocationMode is {asked.allocation_mode!r}", "ExactCount or All")
        return 1 if asked.count is None else asked.count

    def class_selectors(self, name: str) -> tuple[str, ...]:
        found = self.classes.get(name)
        if found is not None:
            if found.spec.config:
                raise self.refuse(f"config of the class {name!r} is for a driver of Kubernetes, and has no effect here")
            return tuple(selector.cel.expression for selector in found.spec.selectors)
        if name in _USUAL:
            return (_USUAL[name],)
        raise self.refuse(f"there is no DeviceClass {name!r}", "give its document, too")

    def kind(self, name: str, selectors: list[CelSelector]) -> Kind:
        """What the devices of a class are: said, or known of the drivers and domains in its selectors."""
        if name in self.kinds:
            return self.kinds[name]
        domains = [domain for s in selectors for domain in _DRIVER.findall(s.text)]
        domains += [path[1] for s in selectors for path in s.paths if len(path) > 1 and path[1] != KUBERNETES]
        for domain in domains:
            known = self.kinds.get(domain)
            if known is not None:
                return known
            kind = domain.removesuffix(".hal").removeprefix("mock-")
            if domain.endswith(".hal") and kind in {known.value for known in Kind}:
                return Kind(kind)
        raise self.refuse(
            f"nothing says of what kind the devices of the class {name!r} are",
            f"a selector with device.driver == '…', or in Python kinds={{{name!r}: Kind.GPU}}",
        )

    def amount(self, name: str, text: str | int | float) -> int:
        found = parse_quantity(str(text))
        if found is None or found.amount <= 0:
            raise self.refuse(f"the capacity {name!r} is {text!r}", "a quantity, as 10Gi")
        return -(-found.amount.numerator // found.amount.denominator)

    def toleration(self, toleration: d.Toleration) -> str:
        if not toleration.key:
            raise self.refuse("a toleration without a key tolerates everything", "name a condition")
        if toleration.value or toleration.operator not in (None, "Exists"):
            raise self.refuse(f"the toleration of {toleration.key!r} asks for a value", "operator: Exists")
        return toleration.key.rpartition("/")[2]

    def constraint(self, constraint: d.Constraint) -> Constraint:
        names = [constraint.match_attribute, constraint.distinct_attribute]
        if sum(name is not None for name in names) != 1:
            raise self.refuse("a constraint has either matchAttribute or distinctAttribute")
        for request in constraint.requests:
            if "/" in request:
                raise self.refuse(f"a constraint speaks of the alternative {request!r}", "name the request alone")
        same, distinct = (_attribute(name) if name is not None else "" for name in names)
        return Constraint(same=same, distinct=distinct, requests=tuple(constraint.requests))


def _attribute(name: str) -> str:
    """Return what a constraint calls an attribute: a place where it is one, its qualified name otherwise."""
    return _OURS.get(name.rpartition("/")[2], name)


def _capacity(name: str) -> str:
    short = name.rpartition("/")[2]
    return next((ours for ours, theirs in CAPACITIES.items() if theirs == short), short)
