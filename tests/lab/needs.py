"""What the lab takes from the host: programs, a kernel with its modules, the checkout and its interpreter."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "modprobe": "kmod",
    "ndctl": "ndctl",
    "daxctl": "daxctl",
    "ip": "iproute2",
    "rdma": "iproute2",
    "lspci": "pciutils",
    "ibv_devinfo": "ibverbs-utils",
}
_DEBIAN_PYTHON = Path("/usr/lib/python3/dist-packages")
_BOOT, _MODULES = Path("/boot"), Path("/lib/modules")
_NEEDED_MODULE = "nfit"  # cloud kernels come without; one that has it has the rest


class Missing(Exception):
    """The host cannot run the lab; ``lines`` say what to do."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


@dataclass(frozen=True)
class Host:
    """What was found on the host."""

    qemu: str
    busybox: Path
    kernel: Path
    release: str
    modules: Path
    python: Path
    """The interpreter of the virtual environment, as the guest calls it."""

    debian_python: Path
    """Where Debian keeps pyverbs, which is on no package index that could serve a virtual environment."""


def find_host() -> Host:
    """Return what the lab needs; raises :class:`Missing` naming Debian's packages for what is not there."""
    packages: dict[str, None] = {}
    lines: list[str] = []
    found = {name: shutil.which(name, path=os.environ.get("PATH", "") + ":" + _SYSTEM_PATH) for name in _PROGRAMS}
    for name, package in _PROGRAMS.items():
        if found[name] is None:
            packages[package] = None
    busybox = found["busybox"]
    if busybox is not None and not _is_static(Path(busybox)):
        packages["busybox-static"] = None
    pyverbs = sorted(_DEBIAN_PYTHON.glob("pyverbs/device.*.so"))
    if not pyverbs:
        packages["python3-pyverbs"] = None
    if not list(Path("/usr/lib").glob("*/libibverbs/librxe-rdmav*.so")):
        packages["ibverbs-providers"] = None
    kernel = _newest_kernel()
    if kernel is None:
        packages["linux-image-amd64"] = None
    elif not os.access(kernel[0], os.R_OK):
        lines.append(f"{kernel[0]} cannot be read by this user: sudo chmod a+r {kernel[0]}")
    if packages:
        lines.insert(0, "sudo apt-get install --no-install-recommends " + " ".join(sorted(packages)))
    abi = f"cpython-{sys.version_info.major}{sys.version_info.minor}-"
    if pyverbs and not any(abi in path.name for path in pyverbs):
        built = re.findall(r"cpython-(\d)(\d+)", pyverbs[0].name)
        version = ".".join(built[0]) if built else "?"
        lines.append(
            f"Debian's pyverbs is built for Python {version}, this environment has "
            f"{sys.version_info.major}.{sys.version_info.minor}: rm -r .venv; make PYTHON=/usr/bin/python{version} lab"
        )
    if lines or kernel is None or busybox is None:
        raise Missing(lines)
    image, release = kernel
    return Host(
        qemu=str(found["qemu-system-x86_64"]),
        busybox=Path(busybox),
        kernel=image,
        release=release,
        modules=_MODULES / release,
        python=Path(sys.executable).absolute(),
        debian_python=_DEBIAN_PYTHON,
    )


def _newest_kernel() -> tuple[Path, str] | None:
    """Return the newest kernel that has its modules beside it, with its release."""
    found: list[tuple[list[int], Path, str]] = []
    for image in _BOOT.glob("vmlinuz-*"):
        release = image.name.removeprefix("vmlinuz-")
        listed = _MODULES / release / "modules.dep"
        if listed.is_file() and f"/{_NEEDED_MODULE}.ko" in listed.read_text():
            found.append(([int(number) for number in re.findall(r"\d+", release)], image, release))
    if not found:
        return None
    _, image, release = max(found)
    return image, release


def _is_static(program: Path) -> bool:
    """True for an ELF-64 program without an interpreter (``PT_INTERP``): it runs where there are no libraries yet."""
    with program.open("rb") as file:
        head = file.read(4096)
    start, size, count = int.from_bytes(head[32:40], "little"), head[54], int.from_bytes(head[56:58], "little")
    kinds = [int.from_bytes(head[start + index * size :][:4], "little") for index in range(count)]
    return head[:4] == b"\x7fELF" and 3 not in kinds
