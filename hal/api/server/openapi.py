"""The OpenAPI 3.1 document, made from the table of routes and the types that cross the socket."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from hal.api.server.routes import Param, Route
from hal.api.wire import PROBLEM_MEDIA_TYPE, Problem

_WHY = {
    400: "The request cannot be understood, or makes no sense.",
    401: "Who is asking is not known.",
    403: "Only operators may do that.",
    404: "There is nothing of that name, or it is somebody else's.",
    405: "The path does not know this method.",
    408: "The request did not arrive in time.",
    409: "Refused, with the proof in words.",
    410: "It is over; or it is not kept any more.",
    413: "The request is too large.",
    415: "The body is not JSON.",
    429: "Too many requests or open claims for the moment.",
    503: "The broker cannot do it for the moment; nothing acknowledged was lost.",
    504: "A device did not answer in time; the outcome is unknown.",
}
"""Why a request fails, by status."""


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the document."""
    types = list(_types(routes))
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = {str(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hal",
            "version": _version(),
            "description": "The broker of a data center's devices: claims, leases, events.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "certificate": {"type": "mutualTLS"},
            },
        },
        "security": [{"token": []}, {"certificate": []}, {}],
    }


def _version() -> str:
    try:
        return version("rackhal")
    except PackageNotFoundError:
        return "0"


def _types(routes: Iterable[Route]) -> Iterable[Any]:
    found: dict[str, Any] = {str(Problem): Problem}
    for route in routes:
        for kind in (route.body, *route.replies.values()):
            if kind is not None and kind not in (str, dict):
                found[str(kind)] = kind
    return found.values()


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    fails = {400, *route.fails, *(() if route.public else (401, 429)), *((403,) if route.operator else ())}
    if not route.public and route.body is not None:
        fails.add(403)
    problem = {"content": {PROBLEM_MEDIA_TYPE: {"schema": schemas[str(Problem)]}}}
    responses: dict[str, Any] = {}
    for status, kind in sorted(route.replies.items()):
        responses[str(status)] = {"description": HTTPStatus(status).phrase, **_content(route, kind, schemas)}
    for status in sorted(fails - set(route.replies)):
        responses[str(status)] = {"description": _WHY[status], **problem}
    found: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.says,
        "responses": responses,
    }
    if route.params:
        found["parameters"] = [_parameter(param) for param in route.params]
    if route.body is not None:
        content: dict[str, Any] = {"schema": schemas[str(route.body)]}
        if route.example is not None:
            content["example"] = msgspec.to_builtins(route.example)
        found["requestBody"] = {"required": True, "content": {"application/json": content}}
    if route.public:
        found["security"] = []
    return found


def _content(route: Route, kind: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    if kind is None:
        return {}
    if kind is str:
        media = "text/event-stream" if route.stream else "text/plain; version=0.0.4; charset=utf-8"
        return {"content": {media: {"schema": {"type": "string"}}}}
    schema = {"type": "object"} if kind is dict else schemas[str(kind)]
    return {"content": {"application/json": {"schema": schema}}}


def _parameter(param: Param) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": param.type}
    if param.type == "string":
        schema |= {"minLength": 1, "maxLength": 256, "pattern": r"^[!-~]+$"}
    for name in ("minimum", "maximum"):
        limit = getattr(param, name)
        if limit is not None:
            schema[name] = int(limit) if param.type == "integer" else limit
    return {
        "name": param.name,
        "in": param.where,
        "required": param.required or param.where == "path",
        "description": param.says,
        "schema": schema,
    }
