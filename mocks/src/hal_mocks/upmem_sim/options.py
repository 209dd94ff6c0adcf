"""The command line of the SDK's compiler, as far as programs use it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hal.errors import UsageError

DEFAULT_STACK_BYTES = 1024
"""A tasklet's stack where ``STACK_SIZE_DEFAULT`` says nothing (clang's driver for DPUs, ``DPURTE.cpp``)."""

_WITH_VALUE = frozenset(("-o", "-D", "-U", "-I", "-L", "-l", "-include", "-isystem", "-target", "-mllvm", "-x", "-MF"))
_IGNORED = re.compile(r"-(?:flto|fstack-size|mcpu|march|mtune|target|-target|mllvm|l|L|Wl,|pipe|static|pg|g)")
_SIZES = re.compile(r"(?:-D|-Wl,--defsym=)(NR_TASKLETS|STACK_SIZE_DEFAULT|STACK_SIZE_TASKLET_(\d+))=(\w+)")


class Chip(msgspec.Struct, frozen=True):
    """What a model of the chip has (SDK documentation: DPU chip characteristics)."""

    name: str
    wram_bytes: int
    iram_instructions: int
    tasklets: int


CHIPS = {"v1A": Chip("v1A", 65536, 4096, 24), "v1B": Chip("v1B", 63488, 3968, 16)}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """A command line that has been read."""

    inputs: tuple[Path, ...]
    output: Path
    compile_only: bool
    preprocess_only: bool
    flags: tuple[str, ...]
    chip: Chip
    tasklets: int
    stacks: tuple[int, ...]


def read_options(arguments: Sequence[str]) -> Options:
    """Read the arguments of ``dpu-upmem-dpurte-clang``. Raises ``UsageError`` for those that cannot be."""
    inputs: list[Path] = []
    flags: list[str] = []
    output: str | None = None
    chip = CHIPS["v1A"]
    sizes: dict[str, int] = {}
    words = iter(arguments)
    for word in words:
        if word in _WITH_VALUE:
            value = next(words, None)
            if value is None:
                raise UsageError(f"{word} needs a value")
            if word == "-o":
                output = value
                continue
            word = word + value if word in ("-D", "-U", "-I") else f"{word} {value}"
        size = _SIZES.match(word)
        if size:
            sizes[size[1]] = _size(size[1], size[3])
        if word.startswith("-mcpu="):
            if word[6:] not in CHIPS:
                raise UsageError(f"{word}: no such chip", hint=f"-mcpu= {' or '.join(CHIPS)}")
            chip = CHIPS[word[6:]]
        if not word.startswith("-"):
            inputs.append(Path(word))
        elif word not in ("-c", "-E") and not _IGNORED.match(word):
            flags.extend(word.split(" ", 1) if word.startswith(("-include ", "-isystem ")) else (word,))
    if not inputs:
        raise UsageError("no input files", hint="hal-dpucc -O2 -DNR_TASKLETS=16 -o kernel kernel.c")
    compile_only = "-c" in arguments
    if compile_only and output is None:
        output = inputs[0].with_suffix(".o").name
    return Options(
        inputs=tuple(inputs),
        output=Path(output or ("/dev/stdout" if "-E" in arguments else "a.out")),
        compile_only=compile_only,
        preprocess_only="-E" in arguments,
        flags=tuple(flags),
        chip=chip,
        tasklets=sizes.get("NR_TASKLETS", 1),
        stacks=_stacks(sizes, chip),
    )


def _size(name: str, text: str) -> int:
    try:
        return int(text.rstrip("uUlL"), 0)
    except ValueError:
        raise UsageError(f"{name}={text}: not a number") from None


def _stacks(sizes: dict[str, int], chip: Chip) -> tuple[int, ...]:
    tasklets = sizes.get("NR_TASKLETS", 1)
    if not 1 <= tasklets <= chip.tasklets:
        raise UsageError(f"NR_TASKLETS={tasklets}: a {chip.name} chip runs 1 to {chip.tasklets} tasklets")
    default = sizes.get("STACK_SIZE_DEFAULT", DEFAULT_STACK_BYTES)
    stacks = tuple(sizes.get(f"STACK_SIZE_TASKLET_{each}", default) for each in range(tasklets))
    for tasklet, size in enumerate(stacks):
        if size <= 0 or size % 8:
            raise UsageError(f"STACK_SIZE_TASKLET_{tasklet}={size}: a stack's size is a multiple of 8 and not 0")
    return stacks
