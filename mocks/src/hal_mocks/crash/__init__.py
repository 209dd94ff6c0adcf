"""Which images of persistent memory a power failure may leave, and whether a program can live with each of them.

For whoever writes a structure on :class:`hal.interfaces.pmem.Mapping`: run its code on a :class:`CrashMemory`, which
looks at every store, flush and drain, and let :func:`explore` cut the power at every moment. See the how-to
"Test that a structure survives a power failure".
"""

from hal_mocks.crash.explore import CrashInconsistency, Failure, Report, explore
from hal_mocks.crash.memory import CrashMemory

__all__ = ["CrashInconsistency", "CrashMemory", "Failure", "Report", "explore"]
