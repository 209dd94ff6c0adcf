"""Attributes as keywords: ``model="NVIDIA H100*", memory_gb=80, numa_node=(0, 1)`` becomes a selector."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from hal.errors import ClaimError
from hal.model.kind import Kind
from hal.model.selector import COMMON, UNITS, USUAL

_SIZES = {f"_{unit.lower()}": unit for unit in UNITS}
_BOUNDS = {"min_": ">=", "max_": "<="}
_MORE = """
    brand driver_version cuda_version memory_bandwidth_bytes_per_second power_limit_watts coherent ecc_mode
    mig_profile compute_slices hca_type ports counters gid_types label alignment regions ranks
"""
KNOWN = frozenset({*COMMON, *USUAL, *_MORE.split(), "numa"})
"""Names that devices of our drivers have; any other is taken for a slip, and ``where`` for what is meant otherwise."""


def where_of(words: Mapping[str, Any], kind: Kind) -> str:
    """Return the selector that keywords stand for.

    A text is what the attribute is, with ``*`` for anything and ``?`` for any character; a list or tuple is any of
    them; None is absent; numbers and truth values are equal. ``min_x`` and ``max_x`` are bounds. ``memory_gb=80`` and
    ``memory_gib=80`` (any name that ends in ``_bytes``, any unit of selectors) are at least that much. Raises
    :class:`~hal.errors.ClaimError` for a name that no device has, with the nearest one.
    """
    return " and ".join(_condition(name, value, kind) for name, value in words.items())


def _condition(name: str, value: Any, kind: Kind) -> str:
    for prefix, sign in _BOUNDS.items():
        if name.startswith(prefix) and name not in KNOWN:
            attribute, unit = _sized(name.removeprefix(prefix))
            return f"{_known(attribute, name)} {sign} {_number(name, value)}{unit}"
    attribute, unit = _sized(name)
    if unit:
        return f"{_known(attribute, name)} >= {_number(name, value)}{unit}"
    _known(name, name)
    if value is None:
        return f"not has({name})"
    if isinstance(value, list | tuple | set | frozenset):
        if not value:
            raise ClaimError(f"{name} is any of nothing", during="claim", hint=f'{name}=("one", "other")')
        parts = [_equals(name, item) for item in (sorted(value, key=str) if isinstance(value, set) else value)]
        return parts[0] if len(parts) == 1 else "(" + " or ".join(parts) + ")"
    return _equals(name, value)


def _equals(name: str, value: Any) -> str:
    if isinstance(value, bool | int | float):
        return f"{name} == {value!r}"
    if not isinstance(value, str):
        raise ClaimError(
            f"{name} is {value!r}, it must be a text, a number, or several", during="claim", hint=f'{name}="…"'
        )
    if "*" not in value and "?" not in value:
        return f"{name} == {str(value)!r}"
    if value.endswith("*") and not set(value[:-1]) & set("*?"):
        return f"startswith({name}, {value[:-1]!r})"
    pattern = "".join({"*": ".*", "?": "."}.get(sign) or re.escape(sign) for sign in value)
    return f"matches({name}, {'^' + pattern + '$'!r})"


def _sized(name: str) -> tuple[str, str]:
    for suffix, unit in _SIZES.items():
        if name.endswith(suffix) and name not in KNOWN:
            return f"{name.removesuffix(suffix)}_bytes", f"*{unit}"
    return name, ""


def _number(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ClaimError(f"{name} is {value!r}, it must be a number", during="claim", hint=f"{name}=80")
    return repr(value)


def _known(attribute: str, written: str) -> str:
    if attribute in KNOWN:
        return attribute
    near = difflib.get_close_matches(attribute, [*KNOWN, *_CLAIMS.split()], n=1)
    raise ClaimError(
        f"there is no word {written!r} for a claim",
        during="claim",
        hint=f"{near[0]}?" if near else f"where={f'{written} == …'!r}, for an attribute that only your driver has",
    )


_CLAIMS = """
    count where cel same distinct near fraction capacity share profile tolerate or_else cost constraints gang
    preempt ttl_seconds tenant id priority wait wait_seconds replicas max_replicas grace_seconds start_at
    duration_seconds
"""
