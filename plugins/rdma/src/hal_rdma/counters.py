"""Counters of a port: their units, those that are not there, and what is left of a difference after wraps and resets.

Two folders hold them: ``counters`` (the port's own, InfiniBand's PortCounters) and ``hw_counters`` (the driver's).
Software RDMA has only the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hal.host.missing import Missing
from hal.host.tree import parse_number
from hal.interfaces.rnic import LinkLayer
from hal.model.attributes import Absence, Attribute, absent, known
from hal_rdma.ports import RDMA

if TYPE_CHECKING:
    from hal.host.tree import Tree

WORD_BYTES = 4
WORDS = {"port_xmit_data": "port_xmit_data_bytes", "port_rcv_data": "port_rcv_data_bytes"}
"""What the kernel counts in words of four bytes, and its name here."""

STANDARD = (
    "symbol_error",
    "link_error_recovery",
    "link_downed",
    "port_rcv_errors",
    "port_rcv_remote_physical_errors",
    "port_rcv_switch_relay_errors",
    "port_xmit_discards",
    "port_xmit_constraint_errors",
    "port_rcv_constraint_errors",
    "local_link_integrity_errors",
    "excessive_buffer_overrun_errors",
    "VL15_dropped",
    "port_xmit_data",
    "port_rcv_data",
    "port_xmit_packets",
    "port_rcv_packets",
    "port_xmit_wait",
)
"""``ports/N/counters`` as every HCA of its own has it (PortCounters, IBA 16.1.3.5)."""

_TRAITS = (
    "local_ack_timeout_err",
    "rnr_nak_retry_err",
    "out_of_sequence",
    "packet_seq_err",
    "roce_slow_restart",
    "req_remote_access_errors",
    "resp_remote_access_errors",
)
"""What health asks for from ``hw_counters``; named even where it is not there, so that its absence can be seen."""

_INFINIBAND_ONLY = frozenset(
    {
        "port_xmit_wait",
        "excessive_buffer_overrun_errors",
        "VL15_dropped",
        "symbol_error",
        "local_link_integrity_errors",
        "link_error_recovery",
    }
)
_NO_COUNTERS = frozenset({"lifespan"})  # for how many milliseconds the kernel keeps what it has read
_SATURATES = {
    8: frozenset({"link_error_recovery", "link_downed", "port_xmit_constraint_errors", "port_rcv_constraint_errors"}),
    16: frozenset(
        {
            "symbol_error",
            "port_rcv_errors",
            "port_rcv_remote_physical_errors",
            "port_rcv_switch_relay_errors",
            "port_xmit_discards",
            "VL15_dropped",
        }
    ),
    4: frozenset({"local_link_integrity_errors", "excessive_buffer_overrun_errors"}),
}
"""Bits of the counters that stop at their top instead of wrapping (IBA 16.1.3.5, PortCounters)."""

_TOPS = {name: (1 << bits) - 1 for bits, names in _SATURATES.items() for name in names}


def read_counters(tree: Tree, name: str, port: int, link_layer: LinkLayer) -> dict[str, Attribute]:
    """Return a port's counters by their kernel name, data in bytes; what is not there is absent with its reason."""
    base = f"{tree.resolve(f'{RDMA}/{name}') or f'{RDMA}/{name}'}/ports/{port}"
    found: dict[str, Attribute] = {}
    own = tree.names(f"{base}/counters")
    for counter in dict.fromkeys((*STANDARD, *own)):
        told = WORDS.get(counter, counter)
        source = f"sysfs:counters/{counter}"
        if counter in own:
            found[told] = _counter(
                tree.read(f"{base}/counters/{counter}"), source, WORD_BYTES if counter in WORDS else 1
            )
        else:
            found[told] = _why_none(counter, source, link_layer, bool(own))
    for counter in tree.names(f"{base}/hw_counters"):
        if counter in _NO_COUNTERS or counter in own:
            continue
        found[counter] = _counter(tree.read(f"{base}/hw_counters/{counter}"), f"sysfs:hw_counters/{counter}", 1)
    for counter in _TRAITS:
        if counter not in found:
            found[counter] = absent(
                Absence.NOT_REPORTED, f"sysfs:hw_counters/{counter}", "the driver does not count it"
            )
    return found


def _counter(text: str | Missing, source: str, unit: int) -> Attribute:
    number = parse_number(text) if isinstance(text, str) else text
    if isinstance(number, Missing):
        return number.attribute(source)
    return known(number * unit, source)


def _why_none(counter: str, source: str, link_layer: LinkLayer, counts: bool) -> Attribute:
    if link_layer is LinkLayer.ETHERNET and counter in _INFINIBAND_ONLY:
        return absent(Absence.UNSUPPORTED, source, "not on Ethernet")
    if not counts:
        return absent(Absence.NOT_REPORTED, source, "the driver has no counters/ folder")
    return absent(Absence.NOT_REPORTED, source, "the driver does not count it")


def numbers(counters: Mapping[str, Attribute]) -> dict[str, int]:
    """Return the counters that have a value."""
    return {name: found.value for name, found in counters.items() if isinstance(found.value, int)}


def growth(name: str, before: int, now: int, most: float) -> int | None:
    """Return how much a counter has grown, or None if nobody can tell.

    ``most`` is the largest growth that the link could have caused since. A counter that fell has wrapped if the way
    over the top of 32 or 64 bits is that plausible; otherwise it was cleared, and what it shows now has come since.
    A counter of PortCounters that stands at its top counts no more; a growth beyond ``most`` is no growth (a device
    that is gone reads as all ones).
    """
    if name in _TOPS and now == _TOPS[name] and before == now:
        return None
    if now >= before:
        return now - before if now - before <= most else None
    unit = WORD_BYTES if name in WORDS.values() else 1
    for bits in (32, 64):
        top = (1 << bits) * unit
        if before < top and now + top - before <= min(most, top // 4):
            return now + top - before
    return now if now <= most else None
