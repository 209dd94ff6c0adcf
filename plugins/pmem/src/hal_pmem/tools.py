"""ndctl, daxctl and cxl: run with a deadline, read as JSON, believed in nothing but form.

A tool that hangs, fails or prints garbage costs the attributes it would have told, never a device: its trouble is text.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hal.drivers.guarded import Call
from hal.interfaces.deadline import Deadline

_LOG = logging.getLogger(__name__)
_MOST_BYTES = 16 << 20
_KILLING_SECONDS = 0.3
FRESH_SECONDS = 10.0
"""How long what a tool said stands: SMART changes slowly, and a claim samples devices several times a second."""

Answer = tuple[list[Mapping[str, Any]], str]
"""Objects that a tool listed, and why there are none ("" if it simply has none)."""

LISTS: Mapping[str, tuple[str, ...]] = {
    "ndctl": ("list", "-BDRNiHX"),
    "daxctl": ("list", "-RD"),
    "cxl": ("list", "-MHi"),
}


class Tools:
    """The tools that ``environ``'s PATH has."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self._kept: dict[str, tuple[float, Answer]] = {}

    def find(self, tool: str) -> str | None:
        """Return where a tool is; /usr/sbin and /sbin count, where an ordinary user's PATH does not look."""
        path = os.pathsep.join((self.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
        return shutil.which(tool, path=path)

    def listings(self, names: Sequence[str], deadline: Deadline) -> dict[str, Answer]:
        """Return what the tools list, asked side by side; what was said a moment ago is said again."""
        now = time.monotonic()
        found = {name: kept[1] for name, kept in self._kept.items() if name in names and now - kept[0] < FRESH_SECONDS}
        calls = {name: Call(lambda name=name: self._list(name, deadline), name) for name in names if name not in found}  # type: ignore[misc]
        for name, call in calls.items():
            if call.join(deadline) and call.value is not None:
                found[name] = call.value
                self._kept[name] = (now, call.value)
            else:
                found[name] = ([], f"{name} did not answer in time")
        return found

    def forget(self) -> None:
        """Ask anew next time: something was changed."""
        self._kept.clear()

    def _list(self, name: str, deadline: Deadline) -> Answer:
        where = self.find(name)
        if where is None:
            return [], f"{name} is not installed"
        done, why = run([where, *LISTS[name]], self.environ, _earlier(deadline))
        if why:
            return [], f"{name}: {why}"
        return parse(done, name)


def _earlier(deadline: Deadline) -> Deadline:
    """Return a deadline that leaves time to kill a tool before its caller goes on, and perhaps ends."""
    left = deadline.timeout
    return deadline if left is None else Deadline.after(max(left / 2, left - _KILLING_SECONDS))


def run(command: Sequence[str], environ: Mapping[str, str], deadline: Deadline) -> tuple[bytes, str]:
    """Run a command and return its output, or why there is none. It is killed at the deadline."""
    try:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environ, "LC_ALL": "C"},
            start_new_session=True,
        ) as child:
            try:
                output, complaints = child.communicate(timeout=deadline.timeout)
            except subprocess.TimeoutExpired:
                _end(child)
                return b"", "it did not answer in time"
    except OSError as error:
        return b"", f"it cannot be run: {error.strerror}"
    if child.returncode:
        words = " ".join(complaints.decode("utf-8", "replace").split())[:200]
        return output, words or f"it ended with status {child.returncode}"
    return output[:_MOST_BYTES], ""


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill a child with everything it started; its pipes are closed rather than waited for."""
    import signal

    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()


def parse(output: bytes, name: str) -> Answer:
    """Return the objects of a listing: one, several, or none."""
    if not output.strip():
        return [], ""
    try:
        found = msgspec.json.decode(output)
    except msgspec.DecodeError:
        return [], f"{name} printed no JSON"
    listed = found if isinstance(found, list) else [found]
    objects: list[Mapping[str, Any]] = [one for one in listed if isinstance(one, dict)]
    return objects, "" if len(objects) == len(listed) else f"{name} printed something else than objects"
