"""What a namespace is furnished with: a profile's machine or a recorded one, and the environment of its programs."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import msgspec

from hal.errors import UsageError
from hal_mocks.machine import Machine
from hal_mocks.namespace.nodes import device_names
from hal_mocks.namespace.room import Room

if TYPE_CHECKING:
    from hal_mocks.graph import Host

INSIDE = "HAL_MOCK_MACHINE"
"""The variable by which ``hal-mock`` knows its machine in a namespace, where ``HAL_MACHINE`` is not set."""

_ARCHIVES = (".tgz", ".tar.gz", ".tar")
_FIXED = {
    # libudev trusts /sys only if it is a sysfs, unless told not to look
    "SYSTEMD_DEVICE_VERIFY_SYSFS": "0",
    # the processor that executes us is another one than that of the profile
    "HWLOC_COMPONENTS": "-x86",
    "HWLOC_THISSYSTEM": "0",
}
StandIn = Callable[[Machine, str], Mapping[str, str]]
_OTHERS = ("HAL_MACHINE", "HAL_SYSFS_ROOT")


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a namespace needs. ``machine`` is None for a recorded one, which nothing happens to."""

    room: Room
    environ: dict[str, str]
    host: str
    machine: Machine | None = None


def is_recording(profile: str) -> bool:
    """True if a name is that of a snapshot, or of a folder that stands for a machine's ``/``."""
    return profile.endswith(_ARCHIVES) or Path(profile, "sys").is_dir()


def stage_recording(path: str, environ: Mapping[str, str], room: Room) -> Stage:
    """Return a recorded machine, unpacked if need be. Raises ``DriverError`` for what is no snapshot."""
    from hal.host.archive import unpack

    root = os.path.abspath(path if os.path.isdir(path) else unpack(path))
    if not os.path.isdir(f"{root}/sys"):
        raise UsageError(f"{path} holds no sys/", hint="a snapshot made by hal-probe snapshot")
    room = msgspec.structs.replace(room, root=root, nodes=device_names(root))
    return Stage(room=room, environ=_environment(environ, {}), host=Path(path).name)


def stage_machine(machine: Machine, name: str, host: str | None, environ: Mapping[str, str], room: Room) -> Stage:
    """Return a machine of a profile, its trees rendered, its vendor libraries in the environment.

    ``name`` is what ``HAL_MACHINE`` would say. Raises ``UsageError`` if a rack's host is not named.
    """
    from hal_mocks.sysfs import host_folder, render

    chosen = choose_host(machine, host)
    render(machine)
    room = msgspec.structs.replace(room, root=str(host_folder(machine.state.folder, chosen.name).absolute()))
    more = {INSIDE: name}
    for stand_in in _stand_ins(chosen):
        more |= _merged(environ, more, stand_in(machine, chosen.name))
    return Stage(room=room, environ=_environment(environ, more), host=chosen.name, machine=machine)


def choose_host(machine: Machine, name: str | None) -> Host:
    """Return a host of a machine by its name, or the only one."""
    hosts = machine.graph.hosts
    some = ", ".join(host.name for host in hosts[:4]) + (", ..." if len(hosts) > 4 else "")
    if name is None:
        if len(hosts) > 1:
            raise UsageError(f"{machine.graph.name} has {len(hosts)} hosts: which one?", hint=f"--host: {some}")
        return hosts[0]
    for host in hosts:
        if host.name == name:
            return host
    raise UsageError(f"{machine.graph.name} has no host {name!r}", hint=f"--host: {some}")


@contextmanager
def machine_folder(given: str | None) -> Iterator[str]:
    """Give the folder of a machine's state: the one that is given, or one that is removed in the end."""
    if given is not None:
        yield os.path.abspath(given)
        return
    folder = tempfile.mkdtemp(prefix="hal-mock-")
    owner = os.getpid()
    try:
        yield folder
    finally:
        if os.getpid() == owner:  # not in a child that failed to become the command
            shutil.rmtree(folder, ignore_errors=True)


def machine_name(profile: str, folder: str, seed: int, clock: str) -> str:
    """Return what ``HAL_MACHINE`` says for a machine."""
    if profile.endswith(".toml"):
        profile = os.path.abspath(profile)
    return f"{profile}?{urlencode({'state': folder, 'seed': seed, 'clock': clock})}"


def _stand_ins(host: Host) -> Iterator[StandIn]:
    for wanted, name in ((bool(host.gpus), "hal_mocks.nvml"), (bool(host.upmem_ranks), "hal_mocks.upmem_sim")):
        if wanted and importlib.util.find_spec(name) is not None:
            module = importlib.import_module(name)
            if hasattr(module, "stage"):
                yield module.stage


def _merged(environ: Mapping[str, str], so_far: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """Return variables of a stand-in; folders of libraries go before those that are there."""
    found = dict(more)
    if "LD_LIBRARY_PATH" in found:
        old = so_far.get("LD_LIBRARY_PATH") or environ.get("LD_LIBRARY_PATH")
        if old and old not in found["LD_LIBRARY_PATH"].split(":"):
            found["LD_LIBRARY_PATH"] += f":{old}"
    return found


def _environment(environ: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    kept = {key: value for key, value in environ.items() if key not in (*_OTHERS, INSIDE)}
    return {**kept, **_FIXED, **more}
