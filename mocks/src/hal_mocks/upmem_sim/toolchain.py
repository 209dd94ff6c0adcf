"""The compiler, our headers and libraries: where they are, and how they are called."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hal.errors import NotReady
from hal_mocks.native import build, cache_folder
from hal_mocks.upmem_sim.counting import REGISTER

FOLDER = Path(__file__).parent
RUNTIME = FOLDER / "runtime"
LIBRARY = FOLDER / "library"
HOST_HEADERS = FOLDER / "include" / "host"
DEVICE_HEADERS = FOLDER / "include" / "device"

# Pointers of 32 bits in 64-bit code: the unit's sizes and layouts, and a program that cannot reach the host's memory.
# No transformation that the unit's compiler does not have, so that instructions can be compared.
DEVICE_FLAGS = (
    *("-mx32", "-ffreestanding", "-fno-pie", "-fno-pic", f"-ffixed-{REGISTER}", "-fno-stack-protector", "-fcommon"),
    *("-fno-tree-vectorize", "-fno-tree-slp-vectorize", "-fno-tree-loop-distribute-patterns", "-fno-jump-tables"),
    *("-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-fcf-protection=none", "-malign-data=abi"),
    *("-ffunction-sections", "-fno-strict-aliasing", "-mno-avx", "-w"),
)
PREPROCESS_FLAGS = (
    *("-mx32", "-ffreestanding", "-nostdinc", "-D__DPU__=1", "-Ddpu_target=1", "-DHAL_UPMEM_SIM=1", "-w"),
    *("-isystem", str(DEVICE_HEADERS)),
)
_INSTALL = "apt install gcc binutils libc6-dev, or name GCC in CC"


def compiler(environ: Mapping[str, str] | None = None) -> str:
    """Return the GCC that compiles for units. Raises ``NotReady`` where there is none that can."""
    environ = os.environ if environ is None else environ
    wanted = environ.get("CC") or "gcc"
    found = shutil.which(wanted, path=environ.get("PATH", os.defpath))
    if found is None:
        raise NotReady(f"DPU programs are compiled by GCC, and there is none ({wanted})", hint=_INSTALL)
    _check(found)
    return found


@functools.cache
def _check(found: str) -> None:
    source = "int main(void) { return sizeof(void *) == 4 ? 0 : 1; }"
    command = (found, "-mx32", f"-ffixed-{REGISTER}", "-x", "c", "-", "-c", "-o", os.devnull)
    ended = subprocess.run(command, input=source, capture_output=True, text=True, errors="replace", check=False)
    if ended.returncode:
        said = (ended.stderr.strip().splitlines() or ["no reason given"])[0]
        raise NotReady(f"{found} does not compile for DPUs, it needs GCC for x86-64 with -mx32: {said}", hint=_INSTALL)


@functools.cache
def _own_headers(found: str) -> str:
    return subprocess.run(
        (found, "-print-file-name=include"), capture_output=True, text=True, check=True
    ).stdout.strip()


def freestanding_flags(found: str) -> tuple[str, ...]:
    """Return the flags that bring the compiler's own headers (``stdint.h``, ``stdarg.h``) behind ours."""
    return ("-isystem", _own_headers(found))


def libdpu(environ: Mapping[str, str] | None = None) -> Path:
    """Return our ``libdpu.so``, compiled on first use."""
    sources = (*sorted(LIBRARY.iterdir()), *sorted(HOST_HEADERS.iterdir()), RUNTIME / "calls.h")
    flags = (f"-I{HOST_HEADERS}", f"-I{RUNTIME}", "-fvisibility=hidden", "-pthread", "-Wl,-soname,libdpu.so", "-lrt")
    return build("libdpu.so", (path for path in sources if path.is_file()), flags=flags, environ=environ)


def runtime_archive() -> Path:
    """Return the archive of the runtime's own code that programs are linked with, compiled on first use."""
    from hal_mocks.upmem_sim.compiler import compile_source, run

    found = compiler()
    sources = sorted(path for path in RUNTIME.iterdir() if path.suffix in (".c", ".S"))
    folder = cache_folder(os.environ) / f"dpurt-{_key(found)}"
    archive = folder / "libdpurt.a"
    if archive.exists():
        return archive
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        objects = []
        for source in sources:
            target = Path(scratch, f"{source.stem}.o")
            compile_source(found, source, target, ("-O2", "-DNR_TASKLETS=1", f"-I{RUNTIME}"))
            objects.append(str(target))
        fresh = Path(scratch, archive.name)
        run(("ar", "rcs", str(fresh), *objects), during="link")
        fresh.replace(archive)
    return archive


def _key(found: str) -> str:
    digest = hashlib.sha256()
    state = Path(found).resolve().stat()
    digest.update(repr((found, state.st_size, state.st_mtime_ns)).encode())
    for folder in (RUNTIME, DEVICE_HEADERS, FOLDER):
        for path in sorted(folder.iterdir()):
            if path.is_file():
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
