"""The ASGI application: every request is identified, limited, read, answered, and nothing ever ends in a traceback."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec
from starlette.routing import Route as Path
from starlette.routing import Router

from hal.api import wire as w
from hal.api.server.callers import Caller, Callers
from hal.api.server.config import Limits
from hal.api.server.openapi import document
from hal.api.server.peers import Peer
from hal.api.server.routes import Ask, Route
from hal.api.server.stream import Streams
from hal.api.server.table import table
from hal.api.server.veil import reply_unnamed, unnamed
from hal.api.server.verbs import Verbs
from hal.drivers.guarded import describe
from hal.errors import HalError, LeaseNotFound

_LOG = logging.getLogger(__name__)
_JSON = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", w.PROBLEM_MEDIA_TYPE.encode())
_TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_ENCODER = msgspec.json.Encoder()
_PUBLIC = Caller("", False, "anybody", "nothing")


class App:
    """One server's application over its verbs."""

    def __init__(self, verbs: Verbs, callers: Callers) -> None:
        self._verbs = verbs
        self._callers = callers
        self.streams = Streams(verbs)
        self.counts: Counter[tuple[str, int]] = Counter()
        self.routes = table(verbs, self._healthz, self._readyz, self._document, self._metrics)
        self._openapi: msgspec.Raw | None = None
        by_path: dict[str, dict[str, Route]] = {}
        for route in self.routes:
            by_path.setdefault(route.path, {})[route.method] = route
        ends = {path: Endpoint(self, methods) for path, methods in by_path.items()}
        self._fixed = {path.encode(): end for path, end in ends.items() if "{" not in path}
        paths = [Path(path, end) for path, end in ends.items() if "{" in path]
        self._router = Router(paths, redirect_slashes=False, default=self._nothing)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request. The path is matched as it was sent, so that an id may hold a ``/``."""
        if scope["type"] != "http":
            return
        raw = scope.get("raw_path") or scope["path"].encode()
        end = self._fixed.get(raw)
        if end is not None:
            await end(scope, receive, send)
        else:
            await self._router({**scope, "path": raw.decode("ascii", "replace")}, receive, send)

    async def _nothing(self, scope: Any, receive: Any, send: Any) -> None:
        error = w.BadRequest("there is nothing at this path", during="ask", hint="/openapi.json lists what there is")
        error.status = 404
        await self.fail(send, error, "unknown")

    def identify(self, scope: Any) -> Caller:
        """Return who sends a request."""
        peer = scope.get("hal.peer", Peer())
        shown = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        return self._callers.identify(peer, None if shown is None else shown.decode("latin-1"), time.time())

    @property
    def limits(self) -> Limits:
        """What callers may ask."""
        return self._verbs.limits

    def admit(self, caller: Caller) -> None:
        """Count a request; raise if the tenant made too many."""
        self._verbs.buckets.spend_request(caller.tenant)

    async def fail(self, send: Any, error: HalError, name: str) -> None:
        """Answer with a problem."""
        problem = w.problem_of(error)
        headers = [_PROBLEM]
        if problem.retry_after_seconds is not None:
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(problem.retry_after_seconds))))
        if problem.status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="hal"'))
        if problem.status in (408, 413):
            headers.append((b"connection", b"close"))
        await self.reply(send, problem.status, _ENCODER.encode(problem), headers, name)

    async def reply(self, send: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]], name: str) -> None:
        """Send an answer, and count it."""
        self.counts[name, status] += 1
        length = [] if status == 204 else [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
        await send({"type": "http.response.body", "body": body})

    # --- what is no verb of the broker

    async def _healthz(self, ask: Ask) -> msgspec.Struct:
        return w.Health(status="alive")

    async def _readyz(self, ask: Ask) -> msgspec.Struct:
        trouble = "the server ends" if self._verbs.bell.stopping else self._verbs.heart.trouble
        ask.status = 200 if trouble is None else 503
        # Anybody may ask whether it is ready; what exactly is wrong is for the log.
        return w.Health(status="ready" if trouble is None else "not ready", detail="" if trouble is None else "see log")

    async def _document(self, ask: Ask) -> Any:
        if self._openapi is None:
            self._openapi = msgspec.Raw(_ENCODER.encode(document(self.routes)))
        return self._openapi

    async def _metrics(self, ask: Ask) -> Any:
        gatherer = self._verbs.gatherer
        lines = ["# TYPE hal_http_requests_total counter"]
        for (name, status), count in sorted(self.counts.items()):
            lines.append(f'hal_http_requests_total{{verb="{name}",status="{status}"}} {count}')
        for name, kind, value in (
            ("hal_commits_total", "counter", gatherer.commits),
            ("hal_claims_total", "counter", gatherer.claims),
            ("hal_event_streams", "gauge", len(self.streams)),
            ("hal_heart_beats_total", "counter", self._verbs.heart.beats),
        ):
            lines += [f"# TYPE {name} {kind}", f"{name} {value}"]
        return "\n".join(lines) + "\n"


class Endpoint:
    """All methods of one path."""

    def __init__(self, app: App, methods: dict[str, Route]) -> None:
        self._app = app
        self._methods = dict(methods)
        if "GET" in methods and not methods["GET"].stream:
            self._methods["HEAD"] = methods["GET"]
        self._allow = ", ".join(sorted(self._methods)).encode()
        self._decoders = {name: msgspec.json.Decoder(route.body) for name, route in methods.items() if route.body}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request; whatever goes wrong becomes a problem document."""
        route = self._methods.get(scope["method"])
        if route is None:
            error = w.BadRequest(f"this path does not know {scope['method']}", during="ask", hint=self._allow.decode())
            error.status = 405
            body = _ENCODER.encode(w.problem_of(error))
            await self._app.reply(send, 405, body, [_PROBLEM, (b"allow", self._allow)], "unknown")
            return
        begun = False

        async def sending(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._answer(route, scope, receive, sending)
        except HalError as error:
            if begun:
                raise
            await self._app.fail(send, error, route.name)
        except Exception as error:  # a guard: a mistake of ours is said as one, without its traceback
            _LOG.exception("%s failed", route.name)
            if not begun:
                wrong = HalError(
                    f"a mistake of ours: {describe(error)}", during=route.name, hint="see the server's log"
                )
                await self._app.fail(send, wrong, route.name)

    async def _answer(self, route: Route, scope: Any, receive: Any, send: Any) -> None:
        caller = _PUBLIC if route.public else self._app.identify(scope)
        if not route.public:
            self._app.admit(caller)
        if route.operator:
            caller.must_operate(route.name)
        ask = Ask(caller, _values(route, scope))
        if route.body is not None:
            data = await read_body(scope, receive, self._app.limits)
            ask.body = _decode(self._decoders[route.method], data)
        if route.stream:
            await self._app.streams.run(ask, receive, send)
            self._app.counts[route.name, 200] += 1
            return
        try:
            reply = await route.handler(ask)
        except HalError as error:
            if not caller.operator:
                error.message = unnamed(error.message)
            raise
        if not caller.operator:
            reply = reply_unnamed(reply)
        if isinstance(reply, str):
            await self._app.reply(send, ask.status, reply.encode(), [_TEXT], route.name)
        elif reply is None:
            await self._app.reply(send, 204, b"", [], route.name)
        else:
            await self._app.reply(send, ask.status, _ENCODER.encode(reply), [_JSON, *ask.headers], route.name)


def _values(route: Route, scope: Any) -> dict[str, Any]:
    """Return the parameters, checked; an unknown one is a mistake worth telling."""
    if not (route.params or scope["query_string"]):
        return {}
    try:
        pairs = parse_qsl(
            scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=32
        )
    except ValueError as error:
        raise w.BadRequest(f"the query cannot be read: {error}", during="ask", hint="name=value&name=value") from error
    query = dict(pairs)
    if len(query) < len(pairs):
        raise w.BadRequest("a parameter is given twice", during="ask", hint="once each")
    values: dict[str, Any] = {}
    for param in route.params:
        text: str | None = query.pop(param.name, None) if param.where == "query" else None
        if param.where == "path":
            text = unquote(scope["path_params"][param.name], errors="replace")
        elif param.where == "header":
            raw = next((value for name, value in scope["headers"] if name == param.name.encode()), None)
            text = raw.decode("latin-1") if raw else None
        if text is not None:
            values[param.name] = _read(param, text)
        elif param.required:
            raise w.BadRequest(f"{param.name} is missing", during="ask", hint=param.says)
    if query:
        hint = "allowed: " + (", ".join(p.name for p in route.params if p.where == "query") or "none")
        raise w.BadRequest(f"there is no parameter {next(iter(query))[:80]!r}", during="ask", hint=hint)
    return values


def _read(param: Any, text: str) -> Any:
    try:
        return param.read(text)
    except w.BadRequest:
        if param.where == "path" and param.name == "id":  # nothing can have such an id
            raise LeaseNotFound("no such lease", device=text[:80], during="ask", hint="hal list") from None
        raise


async def read_body(scope: Any, receive: Any, limits: Limits) -> bytes:
    """Return the body; raise for one that is no JSON by its type, too large, or too slow."""
    length: bytes | None = None
    media = b""
    for name, value in scope["headers"]:
        if name == b"content-length":
            length = value
        elif name == b"content-type":
            media = value.split(b";")[0].strip().lower()
    if media != b"application/json":
        raise _bad(415, f"the body is {media.decode('latin-1')[:80] or 'of no type'}", "content-type: application/json")
    if length is not None and int(length) > limits.most_body_bytes:
        raise _bad(413, f"the body has {int(length)} bytes", f"at most {limits.most_body_bytes}")
    # What is there already needs no deadline.
    message = await receive() if "hal.whole" in scope else await _next(receive, limits)
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        return _whole(message, body, limits)
    parts, size = [body], len(body)
    try:
        async with asyncio.timeout(limits.body_seconds):
            while message.get("more_body"):
                message = await receive()
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limits.most_body_bytes:
                    raise _bad(413, "the body is too large", f"at most {limits.most_body_bytes} bytes")
    except TimeoutError:
        raise _bad(408, f"the body was not there within {limits.body_seconds:g} s", "send it sooner") from None
    return _whole(message, b"".join(parts), limits)


async def _next(receive: Any, limits: Limits) -> Any:
    try:
        async with asyncio.timeout(limits.body_seconds):
            return await receive()
    except TimeoutError:
        raise _bad(408, f"the body was not there within {limits.body_seconds:g} s", "send it sooner") from None


def _whole(message: Any, body: bytes, limits: Limits) -> bytes:
    if message["type"] == "http.disconnect":
        raise _bad(400, "the request broke off", "send it again")
    if len(body) > limits.most_body_bytes:
        raise _bad(413, "the body is too large", f"at most {limits.most_body_bytes} bytes")
    return body


def _decode(decoder: msgspec.json.Decoder[Any], data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise w.BadRequest(f"the body: {error}", during="ask", hint="/openapi.json says what it may be") from error


def _bad(status: int, detail: str, hint: str) -> w.BadRequest:
    error = w.BadRequest(detail, during="ask", hint=hint)
    error.status = status
    return error
