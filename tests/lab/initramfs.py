"""The first root of the guest: busybox, a few modules, and a script that puts the host's file system in its place."""

from __future__ import annotations

import gzip
import lzma
import re
import shlex
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

# Without these the guest reaches nothing; all other modules come from the host's file system once that is mounted.
_FIRST_MODULES = ("virtio_pci", "virtio_console", "9p", "9pnet_virtio", "overlay")
_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=1048576,cache=loose host /lower
mount -t tmpfs -o size=60% upper /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root
for folder in proc sys dev; do mount --move /$folder /root/$folder; done
mount -t tmpfs run /root/run
mkdir -p /root/run/lab /root/run/udev /root/dev/shm
mount -t tmpfs shm /root/dev/shm
exec switch_root /root /bin/sh -c @LAST@
"""


def build(busybox: Path, modules: Path, last: Iterable[str]) -> bytes:
    """Return an initramfs (cpio, "newc"). ``last`` is the program that runs, as the first process, in the host's files.

    Raises :class:`LookupError` for a kernel that lacks a module.
    """
    files: dict[str, bytes] = {}
    order: list[str] = []
    for path in with_dependencies(modules, _FIRST_MODULES):
        name = re.sub(r"\.ko(\.\w+)?$", ".ko", path.name)
        files[f"modules/{name}"] = _plain(path)
        order.append(name)
    files["modules/order"] = "".join(name + "\n" for name in order).encode()
    archive = _Archive()
    for folder in ("bin", "proc", "sys", "dev", "modules", "lower", "upper", "root"):
        archive.add(folder, stat.S_IFDIR | 0o755)
    # The kernel opens the console before devtmpfs is there.
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.add("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes())
    archive.add("init", stat.S_IFREG | 0o755, _INIT.replace("@LAST@", shlex.quote(shlex.join(last))).encode())
    for name, data in files.items():
        archive.add(name, stat.S_IFREG | 0o644, data)
    return archive.finish()


def with_dependencies(modules: Path, wanted: Iterable[str]) -> list[Path]:
    """Return the files of modules in the order in which they are loaded; built-in ones need none (``modules.dep``)."""
    depends: dict[str, tuple[str, list[str]]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        depends[_module(path)] = path, rest.split()
    builtin = {_module(line) for line in (modules / "modules.builtin").read_text().splitlines()}
    order: dict[str, None] = {}
    _load(wanted, depends, builtin, order)
    return [modules / path for path in order]


def _load(
    wanted: Iterable[str], depends: Mapping[str, tuple[str, list[str]]], builtin: set[str], order: dict[str, None]
) -> None:
    for name in wanted:
        if name in builtin:
            continue
        if name not in depends:
            raise LookupError(f"this kernel has no module {name}")
        path, needs = depends[name]
        if path not in order:
            _load(map(_module, needs), depends, builtin, order)
            order[path] = None


def _module(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def _plain(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    return gzip.decompress(data) if path.suffix == ".gz" else data


class _Archive:
    """A cpio archive in the form that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        """Append an entry that root owns."""
        self._inode += 1
        path = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self._parts += [_padded(head), _padded(data)]

    def finish(self) -> bytes:
        """Return the whole archive."""
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
