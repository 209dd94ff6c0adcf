"""Compile a DPU program written for UPMEM's SDK with the host's compiler, into a file that our ``libdpu.so`` loads.

Such a file holds the program twice: counted, and counted with a call before each access that another tasklet may see.
The second is what runs under a seed. It is an ELF file of the host's x32 kind, followed by a second one and a trailer.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hal.errors import DriverError, UsageError
from hal_mocks.upmem_sim import toolchain
from hal_mocks.upmem_sim.counting import SECTION, count_instructions
from hal_mocks.upmem_sim.elf import Elf
from hal_mocks.upmem_sim.longs import widen_longs
from hal_mocks.upmem_sim.options import Options, read_options

MAGIC = b"HALDPU01"
_TRAILER = struct.Struct("<8sQQ")
_VARIANTS: tuple[tuple[str, ...], ...] = ((), ("-fsanitize=thread",))


def compile_program(arguments: Sequence[str]) -> Path:
    """Do what ``dpu-upmem-dpurte-clang`` does with these arguments; returns the file that was made.

    Raises ``UsageError`` for arguments that cannot be, ``NotReady`` where there is no compiler that can, and
    ``DriverError`` with the compiler's words, or when the program does not fit into the unit's memories.
    """
    options = read_options(arguments)
    compiler = toolchain.compiler()
    with tempfile.TemporaryDirectory(prefix="hal-dpucc-") as scratch:
        folder = Path(scratch)
        if options.preprocess_only:
            return _preprocess_only(compiler, options)
        objects = _objects(compiler, options, folder)
        if options.compile_only:
            if len(options.inputs) != 1:
                raise UsageError("-c takes one source", hint="compile each by itself")
            made = tuple(variant[0].read_bytes() for variant in objects)
        else:
            linked = [folder / f"program{number}" for number in range(len(_VARIANTS))]
            for target, files in zip(linked, objects, strict=True):
                _link(compiler, options, target, files)
            made = tuple(target.read_bytes() for target in linked)
            _check_memories(options, Elf(made[0]))
    _write(options.output, made)
    return options.output


def split(data: bytes) -> tuple[bytes, bytes]:
    """Return both halves of a file that :func:`compile_program` made."""
    if len(data) > _TRAILER.size:
        magic, offset, size = _TRAILER.unpack_from(data, len(data) - _TRAILER.size)
        if magic == MAGIC and offset + size + _TRAILER.size == len(data):
            return data[:offset], data[offset : offset + size]
    raise DriverError(
        "not a DPU program or object", hint="hal-dpucc makes them; the SDK's own binaries do not run here"
    )


def _write(path: Path, halves: tuple[bytes, ...]) -> None:
    plain, checked = halves
    plain += bytes(-len(plain) % 16)
    try:
        path.write_bytes(plain + checked + _TRAILER.pack(MAGIC, len(plain), len(checked)))
        path.chmod(0o755)
    except OSError as error:
        raise DriverError(f"{path} cannot be written: {error.strerror}", during="compile") from error


def _objects(compiler: str, options: Options, folder: Path) -> list[list[Path]]:
    """Return the object files of both variants, in the order of the inputs."""
    jobs = [(source, variant) for variant in range(len(_VARIANTS)) for source in options.inputs]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda job: _object(compiler, options, folder, *job), jobs))
    count = len(options.inputs)
    return [done[each * count : (each + 1) * count] for each in range(len(_VARIANTS))]


def _object(compiler: str, options: Options, folder: Path, source: Path, variant: int) -> Path:
    stem = f"{options.inputs.index(source)}-{variant}-{source.stem}"
    target = folder / f"{stem}.o"
    if not source.exists():
        raise DriverError(f"no such file: {source}", during="compile")
    if source.suffix in (".o", ".obj"):
        target.write_bytes(split(source.read_bytes())[variant])
        return target
    compile_source(compiler, source, target, (*options.flags, *_chip_flags(options)), _VARIANTS[variant])
    return target


def _chip_flags(options: Options) -> tuple[str, ...]:
    version = (f"-D__dpu_{options.chip.name}__=1",)
    return version if any("NR_TASKLETS=" in flag for flag in options.flags) else (*version, "-DNR_TASKLETS=1")


def compile_source(compiler: str, source: Path, target: Path, flags: Sequence[str], variant: Sequence[str] = ()) -> int:
    """Compile one source of the unit's into an object that counts; returns the instructions it has (an estimate)."""
    if source.suffix in (".S", ".s"):
        run((compiler, *toolchain.DEVICE_FLAGS, *flags, "-c", str(source), "-o", str(target)))
        return 0
    preprocessed, assembly = target.with_suffix(".i"), target.with_suffix(".s")
    own = toolchain.freestanding_flags(compiler)
    run((compiler, *toolchain.PREPROCESS_FLAGS, *own, *flags, "-E", str(source), "-o", str(preprocessed)))
    preprocessed.write_text(widen_longs(preprocessed.read_text(errors="surrogateescape")), errors="surrogateescape")
    code = [flag for flag in flags if not flag.startswith(("-D", "-U", "-I", "-include", "-isystem", "-M"))]
    run((compiler, *code, *toolchain.DEVICE_FLAGS, *variant, "-S", str(preprocessed), "-o", str(assembly)))
    counted, size = count_instructions(assembly.read_text())
    assembly.write_text(counted)
    run((compiler, "-mx32", "-c", str(assembly), "-o", str(target)))
    return size


def _preprocess_only(compiler: str, options: Options) -> Path:
    target = options.output
    flags = (*options.flags, *_chip_flags(options))
    own = toolchain.freestanding_flags(compiler)
    run((compiler, *toolchain.PREPROCESS_FLAGS, *own, *flags, "-E", str(options.inputs[0]), "-o", str(target)))
    return target


def _link(compiler: str, options: Options, target: Path, objects: Sequence[Path]) -> None:
    symbols = {"NR_TASKLETS": options.tasklets}
    symbols |= {f"STACK_SIZE_TASKLET_{each}": size for each, size in enumerate(options.stacks)}
    defined = (f"-Wl,--defsym={name}={value}" for name, value in symbols.items())
    run(
        (
            *(compiler, "-mx32", "-nostdlib", "-static", "-no-pie", "-Wl,-n,-q,--gc-sections,--build-id=none"),
            *("-Wl,-z,noexecstack", f"-Wl,-T,{toolchain.RUNTIME / 'program.lds'}", "-o", str(target), *defined),
            *(*map(str, objects), str(toolchain.runtime_archive())),
        ),
        during="link",
    )


def _check_memories(options: Options, program: Elf) -> None:
    chip = options.chip
    data = program.symbols()["HAL_WRAM_END"]
    stacks = sum(options.stacks)
    if data + stacks > chip.wram_bytes:
        raise DriverError(
            f"WRAM overflow by {data + stacks - chip.wram_bytes} bytes: {data} of data and {stacks} of stacks for "
            f"{options.tasklets} tasklets, but a {chip.name} chip has {chip.wram_bytes}",
            during="link",
            hint="fewer tasklets, a smaller STACK_SIZE_DEFAULT, or move data to MRAM with __mram",
        )
    counts = program.section(SECTION)
    code = sum(struct.unpack(f"<{len(counts) // 4}I", counts))
    if code > chip.iram_instructions:
        raise DriverError(
            f"IRAM overflow: about {code} instructions (estimated from the host's code), but a {chip.name} chip has "
            f"{chip.iram_instructions}",
            during="link",
            hint="-Os, or fewer and smaller functions",
        )


def run(command: Sequence[str], during: str = "compile") -> None:
    """Run a tool; raises ``DriverError`` with what it said if it fails."""
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if ended.returncode:
        said = ended.stderr.strip() or f"exit {ended.returncode}"
        raise DriverError(f"the compiler refused:\n{said}", during=during)
