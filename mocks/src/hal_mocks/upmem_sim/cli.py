"""``hal-dpucc``: the SDK's compiler for DPU programs, by the host's GCC."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hal.errors import HalError

_USAGE = """\
usage: hal-dpucc [OPTIONS OF dpu-upmem-dpurte-clang] -o PROGRAM SOURCES   compile a DPU program
       hal-dpucc --library                                                compile libdpu.so and say where it is
       hal-dpucc --sdk FOLDER                                             make a folder in the form of UPMEM's SDK
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_USAGE)
        return 0 if words else 2
    try:
        return _run(words)
    except HalError as error:
        sys.stderr.write(f"hal-dpucc: error: {error}\n")
        return 1


def _run(words: list[str]) -> int:
    if words[0] == "--library":
        from hal_mocks.upmem_sim.toolchain import libdpu

        sys.stdout.write(f"{libdpu()}\n")
    elif words[0] == "--sdk":
        from hal_mocks.upmem_sim.sdk import make_sdk

        if len(words) != 2:
            sys.stderr.write(_USAGE)
            return 2
        sys.stdout.write(f"{make_sdk(words[1])}\n")
    else:
        from hal_mocks.upmem_sim.compiler import compile_program

        compile_program(words)
    return 0
