"""The commands of ``hal`` around a server: serve, token, completion."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hal.cli.asking import print_json
from hal.cli.options import parser
from hal.errors import NotReady, UsageError

if TYPE_CHECKING:
    from hal.api.server.config import Config


def do_serve(options: argparse.Namespace) -> int:
    """``hal serve``: until SIGTERM or Ctrl-C."""
    try:
        from hal.api.server.listen import refuse_second
        from hal.api.server.start import serve
    except ImportError as error:
        raise NotReady(
            f"{error.name} is not installed", during="serve", hint="pip install 'rackhal[server]'"
        ) from error
    from hal.api.connect import socket_path

    config = _config(options)
    unix = Path(config.socket).absolute() if config.socket is not None else socket_path(state=options.state)
    if options.check:
        print_json(msgspec.structs.replace(config, socket=str(unix)))
        return 0
    refuse_second(unix)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)

    def ready(addresses: list[str]) -> None:
        if options.json:
            sys.stdout.write(msgspec.json.encode({"serving": addresses}).decode() + "\n")
        else:
            print("hal serves on " + ", ".join(addresses))
        sys.stdout.flush()

    serve(config, unix, state=options.state, deadline_seconds=options.wait, ready=ready)
    return 0


def _config(options: argparse.Namespace) -> Config:
    from hal.api.server.config import read_config

    tls: dict[str, Any] | None = None
    if options.tls_certificate or options.tls_key or options.tls_client_ca:
        if not (options.tls_certificate and options.tls_key):
            raise UsageError(
                "TLS needs a certificate and its key", during="serve", hint="--tls-certificate FILE --tls-key FILE"
            )
        tls = {"certificate": options.tls_certificate, "key": options.tls_key}
        if options.tls_client_ca:
            tls["client_ca"] = options.tls_client_ca
    return read_config(
        options.config,
        socket=options.socket,
        group=options.group,
        listen=options.listen,
        tls=tls,
        token_key=options.token_key,
    )


def do_token(options: argparse.Namespace) -> int:
    """``hal token key`` and ``hal token make``."""
    from hal.api.folders import folders
    from hal.api.tokens import make_key, make_token, read_key

    key = options.key if options.key is not None else folders(state=options.state).state / "token.key"
    if options.action == "key":
        make_key(key)
        if options.json:
            print_json({"key": str(key)})
        else:
            print(f"the key is {key}; serve with it: hal serve --token-key {key}")
        return 0
    if not options.tenant:
        raise UsageError("whom does the token speak for?", during="token", hint="--tenant org/team")
    made = make_token(read_key(key), options.tenant, options.for_seconds, role=options.role, claim=options.claim)
    if options.json:
        print_json({"token": made, "tenant": options.tenant, "seconds": options.for_seconds})
    else:
        print(made)
    return 0


def do_completion(options: argparse.Namespace) -> int:
    """``hal completion``: a script for the shell's start file."""
    try:
        import shtab
    except ImportError as error:
        raise NotReady("shtab is not installed", during="completion", hint="pip install shtab") from error
    script = shtab.complete(parser(everything=True), shell=options.shell)
    if options.json:
        print_json({"shell": options.shell, "script": script})
    else:
        print(script)
    return 0
