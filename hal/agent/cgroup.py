"""Keeping a program from the devices of others: the kernel's device filter of a control group of its own.

Version 2 of control groups asks a small BPF program at every open of a device node
(``BPF_PROG_TYPE_CGROUP_DEVICE``; include/uapi/linux/bpf.h); version 1 has a list (``devices.allow``). Both need root.
A filter says what may be opened, and nothing else may: the nodes that every program needs, and those of the lease.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from hal.agent.bind import folder_of
from hal.errors import AccessDenied
from hal.model.kind import Kind
from hal.model.lease import AllocatedDevice

_BPF_CALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_PROG_LOAD, _PROG_ATTACH = 5, 8
_CGROUP_DEVICE = 15  # the type of program
_ATTACH_DEVICE = 6
_TYPES = {"b": 1, "c": 2}
ANY = -1


class Node(msgspec.Struct, frozen=True, order=True):
    """A device node: ``b`` or ``c``, major and minor number; :data:`ANY` minor stands for all of that major."""

    type: str
    major: int
    minor: int


USUAL = (
    Node("c", 1, 3),  # null
    Node("c", 1, 5),  # zero
    Node("c", 1, 7),  # full
    Node("c", 1, 8),  # random
    Node("c", 1, 9),  # urandom
    Node("c", 5, 0),  # tty
    Node("c", 5, 2),  # ptmx
    Node("c", 136, ANY),  # pts
)
"""What every program may open: what container runtimes allow."""
_NVIDIA = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
_COMMON = {
    "nvidia": _NVIDIA,
    "amd": ("/dev/kfd",),
    Kind.RNIC.value: ("/dev/infiniband/rdma_cm",),
}


class Filtered(msgspec.Struct, frozen=True, kw_only=True):
    """A control group with a filter: who writes their process id to ``procs`` is in it. ``how`` says by which means."""

    folder: str
    procs: str
    how: str


# --- which nodes


def nodes_of(devices: Iterable[AllocatedDevice], root: Path) -> tuple[Node, ...]:
    """Return the device nodes of some devices: the kernel's word for each, and what their vendor's library shares."""
    found: set[Node] = set()
    for device in devices:
        folder = folder_of(device, root)
        if folder is not None:
            found.update(_below(folder))
        shared = list(_COMMON.get(device.kind.value, ()))
        if device.kind is Kind.GPU:
            vendor = device.vendor.lower()
            shared += _COMMON["amd"] if vendor.startswith(("amd", "advanced micro")) else ()
            if "nvidia" in vendor:
                shared += [*_COMMON["nvidia"], *_nvidia_node(device, root)]
        for space, path in (("rank", "/dev/{}"), ("rshim", "/dev/{}/boot"), ("rshim", "/dev/{}/misc")):
            shared += [
                path.format(alias[len(space) + 1 :]) for alias in device.aliases if alias.startswith(space + ":")
            ]
        found.update(node for path in shared if (node := _stat(root / path.lstrip("/"))) is not None)
    return tuple(sorted(found))


def _below(folder: Path) -> Iterable[Node]:
    """Yield the nodes of a device's folder in sysfs, not those of the PCI functions behind it."""
    stack = [folder.resolve()]
    while stack:
        here = stack.pop()
        try:
            entries = list(os.scandir(here))
        except OSError:
            continue
        for entry in entries:
            if entry.name == "dev" and entry.is_file(follow_symlinks=False):
                node = _parse(Path(entry.path), "b" if "/block/" in f"{here}/" else "c")
                if node is not None:
                    yield node
            elif entry.is_dir(follow_symlinks=False) and not _PCI.fullmatch(entry.name):
                stack.append(Path(entry.path))


_PCI = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]|virtfn\d+")


def _parse(path: Path, type_: str) -> Node | None:
    try:
        major, _, minor = path.read_text(encoding="ascii").strip().partition(":")
        return Node(type_, int(major), int(minor))
    except (OSError, ValueError):
        return None


def _nvidia_node(device: AllocatedDevice, root: Path) -> list[str]:
    """NVIDIA's own module is not in sysfs with its nodes; it tells the minor number elsewhere."""
    for alias in device.aliases:
        if alias.startswith("pci:"):
            path = root / "proc/driver/nvidia/gpus" / alias[4:] / "information"
            try:
                text = path.read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            minor = re.search(r"Device Minor:\s*(\d+)", text)
            if minor:
                return [f"/dev/nvidia{minor[1]}"]
    return []


def _stat(path: Path) -> Node | None:
    import stat

    try:
        found = path.stat()
    except OSError:
        return None
    if not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        return None
    return Node("c" if stat.S_ISCHR(found.st_mode) else "b", os.major(found.st_rdev), os.minor(found.st_rdev))


# --- the program


def program(allowed: Sequence[Node]) -> bytes:
    """Return a BPF program that returns 1 for the allowed nodes and 0 for all others; making nodes is allowed.

    Its context is ``struct bpf_cgroup_dev_ctx``: type in the low half of the first word, access (1: mknod, 2: read,
    4: write) in the high half, then major and minor. Fails for nobody: a node that is not known may not be opened.
    """
    code = [
        _load(2, 1, 0),  # r2 = the first word
        _move(5, 2),
        _alu_k(0x77, 5, 16),  # r5 >>= 16: access
        _alu_k(0x57, 2, 0xFFFF),  # r2 &= 0xffff: type
        _load(3, 1, 4),  # r3 = major
        _load(4, 1, 8),  # r4 = minor
    ]
    code += [_jump(0x55, 5, 1, 2), _alu_k(0xB7, 0, 1), _exit()]  # if access != mknod, go on; else yes
    for node in allowed:
        tests = [(2, _TYPES[node.type]), (3, node.major)]
        if node.minor != ANY:
            tests.append((4, node.minor))
        left = len(tests) + 2
        for register, value in tests:
            left -= 1
            code.append(_jump(0x55, register, value, left))  # if it differs, go to the next node
        code += [_alu_k(0xB7, 0, 1), _exit()]
    code += [_alu_k(0xB7, 0, 0), _exit()]
    return b"".join(code)


def _instruction(operation: int, target: int, source: int, offset: int, value: int) -> bytes:
    registers = target | source << 4 if sys.byteorder == "little" else target << 4 | source
    return struct.pack("=BBhI", operation, registers, offset, value & 0xFFFFFFFF)


def _load(target: int, source: int, offset: int) -> bytes:
    return _instruction(0x61, target, source, offset, 0)


def _move(target: int, source: int) -> bytes:
    return _instruction(0xBF, target, source, 0, 0)


def _alu_k(operation: int, target: int, value: int) -> bytes:
    return _instruction(operation, target, 0, 0, value)


def _jump(operation: int, register: int, value: int, offset: int) -> bytes:
    return _instruction(operation, register, 0, offset, value)


def _exit() -> bytes:
    return _instruction(0x95, 0, 0, 0, 0)


def _bpf(command: int, attributes: bytes) -> int:
    call = _BPF_CALL.get(platform.machine())
    if call is None:
        raise AccessDenied(f"bpf(2) is not known on {platform.machine()}", during="filter", hint="--devices any")
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes, 128)
    result: int = libc.syscall(call, command, buffer, 128)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def load(instructions: bytes) -> int:
    """Let the kernel verify a program and return its descriptor; raises ``OSError`` with the kernel's reason."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQIIQI",
        _CGROUP_DEVICE,
        len(instructions) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        0,
        0,
        0,
        0,
    )
    return _bpf(_PROG_LOAD, attributes)


# --- the control groups


def confine(name: str, allowed: Sequence[Node]) -> Filtered:
    """Make a control group below this process's own, in which only those nodes can be opened.

    Raises ``AccessDenied`` with the reason of each version if neither lets it be done.
    """
    reasons = []
    for version, attempt in (("cgroup v2", _confine_v2), ("cgroup v1", _confine_v1)):
        try:
            return attempt(name, allowed)
        except (OSError, LookupError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            reasons.append(f"{version}: {why}")
    raise AccessDenied(
        "the device filter cannot be set: " + "; ".join(reasons),
        during="filter",
        hint="run as root, or without --strict",
    )


def release(filtered: Filtered) -> None:
    """Remove a control group whose programs have ended; one with programs in it stays."""
    try:
        os.rmdir(filtered.folder)
    except OSError:
        pass


def _sweep(parent: Path) -> None:
    """Remove the groups of runs that were killed before they could; one with programs in it does not let itself."""
    for left in parent.glob("hal-*"):
        pid = left.name[4:]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            release(Filtered(folder=str(left), procs="", how=""))


def _confine_v2(name: str, allowed: Sequence[Node]) -> Filtered:
    folder = own_folder("cgroup2") / name
    _sweep(folder.parent)
    folder.mkdir(exist_ok=True)
    try:
        found = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            loaded = load(program(allowed))
            try:
                _bpf(_PROG_ATTACH, struct.pack("=IIII", found, loaded, _ATTACH_DEVICE, 0))
            finally:
                os.close(loaded)
        finally:
            os.close(found)
    except BaseException:
        folder.rmdir()
        raise
    return Filtered(folder=str(folder), procs=str(folder / "cgroup.procs"), how="cgroup v2")


def _confine_v1(name: str, allowed: Sequence[Node]) -> Filtered:
    folder = own_folder("devices") / name
    _sweep(folder.parent)
    folder.mkdir(exist_ok=True)
    try:
        (folder / "devices.deny").write_text("a")
        for line in ("c *:* m", "b *:* m", *(_line(node) for node in allowed)):
            (folder / "devices.allow").write_text(line)
    except BaseException:
        folder.rmdir()
        raise
    return Filtered(folder=str(folder), procs=str(folder / "cgroup.procs"), how="cgroup v1")


def _line(node: Node) -> str:
    return f"{node.type} {node.major}:{'*' if node.minor == ANY else node.minor} rwm"


def own_folder(hierarchy: str, proc: Path = Path("/proc/self")) -> Path:
    """Return this process's own folder in a hierarchy (``cgroup2``, or a controller of version 1).

    Raises ``LookupError`` if it is not mounted.
    """
    for line in (proc / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if hierarchy in controllers.split(",") or (hierarchy == "cgroup2" and not controllers):
            break
    else:
        raise LookupError(f"no hierarchy {hierarchy}")
    for line in (proc / "mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind == hierarchy or (kind == "cgroup" and hierarchy in options.split(" ")[-1].split(",")):
            _, _, _, base, point = fields.split(" ")[:5]
            inner = path[len(base) :] if base != "/" and path.startswith(base) else path
            return Path(point) / inner.lstrip("/")
    raise LookupError(f"{hierarchy} is not mounted")
