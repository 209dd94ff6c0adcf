"""A fake ``libnvidia-ml.so.1``: a mock host's GPUs for programs that ask NVML.

The library (in C, ``library/``) maps one file a host, which this package writes from the machine's own model. It starts
no thread, and asks nobody: what is to come is in the file already.
"""

from __future__ import annotations

from hal_mocks.nvml.staging import DRIVER, DRIVERS, STATE, library, stage, sync

__all__ = ["DRIVER", "DRIVERS", "STATE", "library", "stage", "sync"]
