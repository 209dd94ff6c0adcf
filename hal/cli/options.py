"""What ``hal`` understands on its command line: one parser for all verbs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from hal.model.kind import Kind

USAGE = 64
VERBS = {
    "claim": "ask for devices and hold them",
    "open": "open the devices of a lease here and show that they work",
    "env": "print the environment of a lease, for eval",
    "run": "claim devices, run a command with them, give them back",
    "renew": "let a lease last longer",
    "resize": "let an elastic lease have more or fewer replicas",
    "release": "give the devices of a lease back, or leave the queue",
    "list": "list the leases",
    "queue": "list the claims that wait",
    "status": "count devices and leases",
    "explain": "say why a claim would be refused",
    "events": "print what happened",
    "repair": "reset a device that broke, and hand it out again if it is well",
    "cordon": "keep a device or a machine from new leases",
    "uncordon": "take a cordon back",
    "drain": "cordon, and tell every holder to leave",
    "tenants": "list tenants, what they use and what they are entitled to",
    "quotas": "say what a tenant may have",
    "audit": "print the trail of who did what, or verify it",
    "serve": "serve the broker on a socket",
    "token": "make the key of a server, and tokens for its callers",
    "completion": "print a script that completes these commands in a shell",
}
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Parser(argparse.ArgumentParser):
    """Ends with 64 for wrong usage."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Say what is wrong, and where the usage is told: some verbs have a screen full of it."""
        self.exit(USAGE, f"{self.prog}: {message} (usage: {self.prog} --help)\n")


def parser(verb: str | None = None, *, everything: bool = False) -> argparse.ArgumentParser:
    """Return the parser of all verbs. Only the options of ``verb`` are known to it, unless ``everything`` is asked."""
    common = _common()
    whole = Parser(prog="hal", description="Claim the devices of this machine, use them, give them back.")
    commands = whole.add_subparsers(dest="verb", required=True, metavar="COMMAND", parser_class=Parser)
    for name, text in VERBS.items():
        made = commands.add_parser(name, help=text, description=text, parents=[common])
        if (everything or verb == name) and name in _OWN:
            _OWN[name](made)
    return whole


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return what a command line says, or end with 64; a word too many is a matter of its verb."""
    made = parser(words[0] if words and words[0] in VERBS else None)
    options, left = made.parse_known_args(words)
    if left:
        made.prog = f"{made.prog} {options.verb}"
        made.error(f"there is no use for {' '.join(left)}")
    return options


def _common() -> Parser:
    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON")
    common.add_argument("--state", type=folder, metavar="DIR", help="keep the journal in this folder")
    common.add_argument(
        "--wait", type=seconds, default=5.0, metavar="SECONDS", help="how long to wait for another process's turn (5)"
    )
    common.add_argument("--traceback", action="store_true", help="if hal itself fails, say where")
    return common


# --- types


def seconds(text: str) -> float:
    """Return a number of seconds up to a day."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds between 0 and 86400")
    return found


def duration(text: str) -> float:
    """Return seconds: ``90``, ``90s``, ``15m``, ``2h`` or ``1d``."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)([smhd]?)", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration, such as 90, 15m, 2h or 1d")
    return float(found[1]) * _UNITS[found[2]]


class FromNow(float):
    """Seconds from now, by the clock of whoever decides: ours may be wrong."""


def moment(text: str) -> float:
    """Return a time since the Unix epoch: seconds, or as ISO 8601 has it, in local time; ``+2h`` is ``FromNow``."""
    if text.startswith("+") and re.fullmatch(r"\d{1,12}(?:\.\d{1,9})?[smhd]?", text[1:], re.ASCII):
        return FromNow(duration(text[1:]))
    if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text, re.ASCII):
        return float(text)
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no time, such as +2h or 2031-05-01T08:00") from None


def whole(text: str) -> int:
    """Return a whole number."""
    if not re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number")
    return int(text)


def rate(text: str) -> float:
    """Return how often in a second."""
    if not re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number a second, such as 50 or 0.5")
    return float(text)


def revision(text: str) -> int:
    """Return a revision of the journal."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a revision, which is 0 or more")
    return int(text)


def folder(text: str) -> Path:
    """Return a folder's path."""
    if not text:
        raise argparse.ArgumentTypeError("the folder has no name")
    return Path(text)


def amount(text: str) -> tuple[str, int]:
    """Return name and amount: ``gpu=8``, ``memory_bytes=16Gi``."""
    found = re.fullmatch(r"([a-z][a-z0-9_]*)=(\d{1,15})(|[kMGT]i?)", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no amount, such as gpu=8 or memory_bytes=16Gi")
    base = 1024 if found[3].endswith("i") else 1000
    return found[1], int(found[2]) * base ** ("kMGT".index(found[3][0]) + 1 if found[3] else 0)


def devices(text: str) -> tuple[str, int]:
    """Return a kind and a number of its devices: ``gpu=8``."""
    found = re.fullmatch(r"([a-z][a-z0-9_]*)=(\d{1,15})", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number of devices of a kind, such as gpu=8")
    kinds = [kind.value for kind in Kind]
    if found[1] not in kinds:
        raise argparse.ArgumentTypeError(f"{found[1]!r} is no kind of device: one of {', '.join(kinds)}")
    return found[1], int(found[2])


# --- what each verb takes beyond the common


def _claim(own: argparse.ArgumentParser) -> None:
    own.add_argument("what", nargs="*", metavar="KIND[:COUNT]", help="gpu, or gpu:4 rnic:4, or gpu:all")
    own.add_argument("--count", type=whole, metavar="N", help="how many (1)")
    own.add_argument("--where", default="", metavar="EXPRESSION", help="as in: memory_bytes >= 80*GB")
    own.add_argument("--cel", action="append", default=[], metavar="EXPRESSION", help="a selector in CEL, as in DRA")
    own.add_argument(
        "--capacity", action="append", default=[], type=amount, metavar="NAME=AMOUNT", help="at least that much of each"
    )
    own.add_argument(
        "--share", action="append", default=[], metavar="SHARE", help="a part of a device: 0.5, or memory_bytes=16Gi"
    )
    own.add_argument("--profile", default="", help="a partition of a device, as in 1g.10gb")
    own.add_argument(
        "--same",
        action="append",
        default=[],
        metavar="PLACE",
        help="node, numa, pci-switch, rack, link-domain, or an attribute",
    )
    own.add_argument(
        "--distinct", action="append", default=[], metavar="PLACE", help="what no two of the devices may share"
    )
    own.add_argument("--pairwise", action="store_true", help="the n-th of each kind together (on one PCI switch)")
    own.add_argument("--replicas", type=whole, metavar="N", help="so many times, each on one node")
    own.add_argument("--max-replicas", type=whole, metavar="N", help="elastic: up to so many, as there is room")
    own.add_argument("--gang", choices=("fewest", "one", "spread"), help="how the replicas lie over places")
    own.add_argument("--over", choices=("node", "rack", "link-domain"), help="which places those are (rack)")
    own.add_argument("--ttl", type=duration, metavar="TIME", help="time to live without renewal (60)")
    own.add_argument("--duration", type=duration, metavar="TIME", help="it ends by itself after that: 90, 15m, 2h")
    own.add_argument("--start", type=moment, metavar="WHEN", help="reserve for later: +2h, 2031-05-01T08:00")
    own.add_argument("--grace", type=duration, metavar="TIME", help="how long to leave if it is taken back (30)")
    own.add_argument("--priority", type=whole, metavar="N", help="higher goes first (0)")
    own.add_argument("--preempt", action="store_true", default=None, help="push out who has a lower priority")
    own.add_argument("--queue", action="store_true", default=None, help="wait in the queue if there is no room")
    own.add_argument("--wait-for", type=duration, metavar="TIME", help="wait in the queue, for so long at most")
    own.add_argument("--tenant", help="on whose account (default)")
    own.add_argument("--id", help="makes the claim idempotent: asked twice, granted once")
    own.add_argument(
        "--file",
        type=Path,
        metavar="FILE",
        help="a whole claim: TOML, JSON, YAML, or a ResourceClaim of Kubernetes (-: standard input)",
    )


def _claim_now(own: argparse.ArgumentParser) -> None:
    _claim(own)
    own.add_argument("--dry-run", action="store_true", help="only say what would become of it")


def _lease(own: argparse.ArgumentParser) -> None:
    own.add_argument("lease", help="the lease's id")


def _tenant(own: argparse.ArgumentParser) -> None:
    own.add_argument("--tenant", help="only what belongs to this tenant and those below")


def _open(own: argparse.ArgumentParser) -> None:
    _lease(own)
    own.add_argument("device", nargs="?", help="one device of it, by name or id (all)")


def _release(own: argparse.ArgumentParser) -> None:
    _lease(own)
    _tenant(own)


def _renew(own: argparse.ArgumentParser) -> None:
    _release(own)
    own.add_argument("--ttl", type=duration, metavar="TIME", help="a different time to live from now on")


def _resize(own: argparse.ArgumentParser) -> None:
    _release(own)
    own.add_argument("replicas", type=whole, help="how many it shall have")


def _events(own: argparse.ArgumentParser) -> None:
    own.add_argument("--since", type=revision, default=0, metavar="REVISION", help="what came after (0: all)")
    own.add_argument("--follow", action="store_true", help="go on, as it happens")
    own.add_argument("--for", dest="for_seconds", type=duration, metavar="TIME", help="go on, for so long")
    _tenant(own)


def _repair(own: argparse.ArgumentParser) -> None:
    own.add_argument("device", help="its id, name or alias")
    own.add_argument("--scrub", action="store_true", help="erase it, too: everything on it is lost")
    own.add_argument("--by-operator", metavar="REASON", help="what you did about it; recorded, and nothing is reset")
    own.add_argument(
        "--timeout", type=seconds, default=120.0, metavar="SECONDS", help="how long a reset may take (120)"
    )


def _cordon(own: argparse.ArgumentParser) -> None:
    own.add_argument("target", nargs="?", help="a device's id, name or alias, or a node (say what is cordoned)")
    own.add_argument("--why", default="", help="the reason, for those who wonder")


def _uncordon(own: argparse.ArgumentParser) -> None:
    own.add_argument("target", help="as it was cordoned")


def _drain(own: argparse.ArgumentParser) -> None:
    own.add_argument("target", help="a device's id, name or alias, or a node")
    own.add_argument("--why", default="", help="the reason, for those who wonder")
    own.add_argument("--grace", type=duration, metavar="TIME", help="how long holders have (as each was promised)")


def _tenants(own: argparse.ArgumentParser) -> None:
    own.add_argument("tenant", nargs="?", help="this one and those below (all)")


def _quotas(own: argparse.ArgumentParser) -> None:
    own.add_argument("tenant", help="as in physics/lattice")
    own.add_argument("--weight", type=whole, metavar="N", help="its share beside its siblings (1)")
    for name, text in (("guarantee", "what it gets back from borrowers"), ("quota", "what it never exceeds")):
        own.add_argument(f"--{name}", action="append", type=devices, metavar="KIND=N", help=text)
    own.add_argument("--most-claims", type=whole, metavar="N", help="how many leases it may have")
    own.add_argument("--most-waiting", type=whole, metavar="N", help="how many of its claims may wait")
    own.add_argument("--claims-per-second", type=rate, metavar="RATE", help="how often it may claim")
    own.add_argument("--forget", action="store_true", help="forget all that was said about it")


def _audit(own: argparse.ArgumentParser) -> None:
    own.add_argument("--since", type=revision, default=0, metavar="LINE", help="what came after this line (0: all)")
    own.add_argument("--verify", action="store_true", help="check that no line was changed, dropped or put in")
    own.add_argument("--anchor", metavar="LINE:HASH", help="verify, and that a line that you remember is still there")


def _serve(own: argparse.ArgumentParser) -> None:
    own.add_argument("--config", type=Path, metavar="FILE", help="TOML: sockets, users, operators, limits")
    own.add_argument("--socket", metavar="PATH", help="the Unix socket (hal.sock in the runtime folder)")
    own.add_argument("--group", help="who may connect besides its owner")
    own.add_argument("--listen", metavar="HOST:PORT", help="TCP, too: with TLS, or with tokens on a loopback address")
    own.add_argument("--tls-certificate", metavar="FILE", help="the server's certificate (PEM)")
    own.add_argument("--tls-key", metavar="FILE", help="its key")
    own.add_argument("--tls-client-ca", metavar="FILE", help="whose client certificates are believed")
    own.add_argument("--token-key", metavar="FILE", help="the key of tokens (hal token key)")
    own.add_argument("--check", action="store_true", help="print the set-up, and serve nothing")


def _token(own: argparse.ArgumentParser) -> None:
    own.add_argument("action", choices=("key", "make"), help="make a key, or a token with it")
    own.add_argument("--key", type=Path, metavar="FILE", help="the key (token.key in the state folder)")
    own.add_argument("--tenant", help="whom the token speaks for")
    own.add_argument("--for", dest="for_seconds", type=duration, default=3600.0, metavar="TIME", help="how long (1h)")
    own.add_argument("--role", choices=("tenant", "operator"), default="tenant", help="what it may do (tenant)")
    own.add_argument("--claim", metavar="ID", help="good for the claim of this id alone")


def _completion(own: argparse.ArgumentParser) -> None:
    own.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="which shell")


def _run(own: argparse.ArgumentParser) -> None:
    from hal.cli.run import add_arguments

    add_arguments(own)


_OWN: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "claim": _claim_now,
    "open": _open,
    "env": _lease,
    "run": _run,
    "renew": _renew,
    "resize": _resize,
    "release": _release,
    "list": _tenant,
    "queue": _tenant,
    "explain": _claim,
    "events": _events,
    "repair": _repair,
    "cordon": _cordon,
    "uncordon": _uncordon,
    "drain": _drain,
    "tenants": _tenants,
    "quotas": _quotas,
    "audit": _audit,
    "serve": _serve,
    "token": _token,
    "completion": _completion,
}
