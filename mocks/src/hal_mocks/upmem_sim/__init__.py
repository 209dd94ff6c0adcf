"""A functional simulator of UPMEM's processing units, below the driver: programs in C for the SDK run unmodified.

``hal-dpucc`` compiles a program for the units, :func:`compile_program` the same from Python; :func:`libdpu` is the host
library, compiled on first use; :func:`stage` gives a child process the ranks of a mock machine through it.
"""

from __future__ import annotations

from hal_mocks.upmem_sim.compiler import compile_program
from hal_mocks.upmem_sim.sdk import make_sdk
from hal_mocks.upmem_sim.staging import stage, sync
from hal_mocks.upmem_sim.toolchain import HOST_HEADERS, libdpu

__all__ = ["HOST_HEADERS", "compile_program", "libdpu", "make_sdk", "stage", "sync"]
