"""What an opened device can do, in the words of its kind's interface: each facet with its verbs."""

from __future__ import annotations

import re
from importlib import import_module

from hal.model.kind import ACCELERATORS, Kind

_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")


def abilities(handle: object, kind: Kind) -> dict[str, list[str]]:
    """Return the verbs of a handle by facet: ``"peer topology": ["peers"]``.

    What its interface does not have is left out, and so is a facet that the handle lacks. A kind without an interface
    of its own has the common verbs only.
    """
    found: dict[str, list[str]] = {}
    for facet in _facets(kind):
        names = [name for name in vars(facet) if not name.startswith("_") and hasattr(type(handle), name)]
        fresh = [name for name in names if not any(name in others for others in found.values())]
        if fresh:
            found[_WORDS.sub(" ", facet.__name__).lower()] = fresh
    return found


def _facets(kind: Kind) -> list[type]:
    if kind in ACCELERATORS:
        interface = getattr(import_module(f"hal.interfaces.{kind.value}"), kind.value.capitalize())
    else:
        interface = import_module("hal.interfaces.common").Handle
    return [facet for facet in interface.__mro__ if facet.__module__.startswith("hal.interfaces")]
