"""AMD's own library, where it is installed: what boards are called, which sysfs tells of few of them.

``amdsmi`` looks for ``libamd_smi.so`` while it is imported, prints to standard output and raises ``KeyError`` where it
finds none (7.0.2); all of it stays in here.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from typing import Any

_LOG = logging.getLogger(__name__)
_NAMES = ("product_name", "market_name")


def load() -> Any:
    """Return the module, initialised; None where it, its library or a GPU that it knows is missing."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            module = importlib.import_module("amdsmi")
            module.amdsmi_init()
    except Exception as error:  # a guard around the library: KeyError, OSError, its own; none of them is ours to name
        _LOG.debug("amdsmi is not used: %s: %s", type(error).__name__, error)
        return None
    return module


def names(module: Any) -> dict[str, str]:
    """Return what the library calls each GPU, by PCI address; a GPU that it cannot name is left out."""
    found: dict[str, str] = {}
    try:
        handles = list(module.amdsmi_get_processor_handles())
    except Exception as error:  # the same guard
        _LOG.debug("amdsmi lists no GPU: %s: %s", type(error).__name__, error)
        return found
    for handle in handles:
        try:
            address = str(module.amdsmi_get_gpu_device_bdf(handle)).lower()
            told = {**module.amdsmi_get_gpu_asic_info(handle), **module.amdsmi_get_gpu_board_info(handle)}
        except Exception as error:  # the same guard: one GPU that does not answer hides no other
            _LOG.debug("amdsmi does not name a GPU: %s: %s", type(error).__name__, error)
            continue
        name = next((str(told[key]) for key in _NAMES if _is_name(told.get(key))), None)
        if name is not None:
            found[address] = name
    return found


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and value not in ("", "N/A") and not value.startswith("0x")
