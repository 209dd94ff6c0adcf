"""What a namespace is furnished with: a profile's machine or a recorded one, and the environment of its programs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import msgspec

from hal.errors import DriverError, UsageError
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
_OTHERS = ("HAL_MACHINE", "HAL_SYSFS_ROOT", INSIDE)
_LONGEST_HOSTNAME = 64
_PATHS = "LD_LIBRARY_PATH"


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a namespace needs. ``machine`` is None for a recorded one, which nothing happens to.

    ``variables`` are those that programs inside get besides their own; ``lacks`` says which stand-ins there are not.
    """

    room: Room
    host: str
    variables: dict[str, str]
    machine: Machine | None = None
    lacks: tuple[str, ...] = ()

    def environ(self, outside: Mapping[str, str]) -> dict[str, str]:
        """Return the environment inside: the machine is the real one there, and no other may be named."""
        found = {key: value for key, value in outside.items() if key not in _OTHERS} | self.variables
        paths = [where[_PATHS] for where in (self.variables, outside) if where.get(_PATHS)]
        return found | ({_PATHS: ":".join(dict.fromkeys(":".join(paths).split(":")))} if paths else {})

    def libraries(self) -> list[str]:
        """Return the stand-ins for vendor libraries, which a running process must load by their full names."""
        folders = self.variables.get(_PATHS, "").split(":")
        return sorted(str(file) for folder in folders if folder for file in Path(folder).glob("*.so*"))


def is_recording(profile: str) -> bool:
    """True if a name is that of a snapshot, or of a folder that stands for a machine's ``/``."""
    return profile.endswith(_ARCHIVES) or Path(profile, "sys").is_dir()


def stage_recording(path: str, room: Room) -> Stage:
    """Return a recorded machine, unpacked if need be. Raises ``DriverError`` for what is no snapshot."""
    from hal.host.archive import unpack

    root = os.path.abspath(path if os.path.isdir(path) else unpack(path))
    if not os.path.isdir(f"{root}/sys"):
        raise UsageError(f"{path} holds no sys/", hint="a snapshot made by hal-probe snapshot")
    room = msgspec.structs.replace(room, root=root, nodes=device_names(root))
    return Stage(room=room, host=Path(path).name, variables=dict(_FIXED))


def stage_machine(machine: Machine, name: str, host: str | None, room: Room) -> Stage:
    """Return a machine of a profile, its trees rendered, its vendor libraries in the environment.

    ``name`` is what ``HAL_MACHINE`` would say. Raises ``UsageError`` if a rack's host is not named.
    """
    from hal_mocks.sysfs import host_folder, render

    chosen = choose_host(machine, host)
    render(machine)
    root = str(host_folder(machine.state.folder, chosen.name).absolute())
    room = msgspec.structs.replace(room, root=root, hostname=chosen.name[:_LONGEST_HOSTNAME])
    variables = {**_FIXED, INSIDE: name}
    theirs = os.environ.get(_PATHS, "").split(":")
    folders: list[str] = []
    lacks: list[str] = []
    for stand_in in _stand_ins(chosen):
        try:
            given = stand_in(machine, chosen.name)
        except (DriverError, OSError) as error:  # no compiler: all the rest is there all the same
            lacks.append(str(error))
            continue
        variables |= given
        folders += [folder for folder in given.get(_PATHS, "").split(":") if folder and folder not in theirs]
    if folders:
        variables[_PATHS] = ":".join(dict.fromkeys(folders))
    return Stage(room=room, host=chosen.name, variables=variables, machine=machine, lacks=tuple(lacks))


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
    if host.gpus:
        from hal_mocks.nvml import stage as stage_nvml

        yield stage_nvml
    if host.upmem_ranks:
        from hal_mocks.upmem_sim import stage as stage_upmem

        yield stage_upmem
