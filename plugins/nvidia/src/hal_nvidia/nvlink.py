"""NVLinks: where they lead, whether they are up, what they have lost; and the way to the other GPUs.

A link's far end is a GPU (direct), a switch (NVSwitch), or unknown. Bandwidth is what NVML calls the common speed of
the active links (``NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON``, megabytes a second in one direction for one link).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from hal.interfaces.gpu import Ancestor, Peer, PeerAccess
from hal.model.device import Link
from hal_nvidia import errors as e
from hal_nvidia.board import Board, pci_address, text

LINK_COUNT, SPEED_COMMON = 91, 90
MAX_LINKS = 36
_SWITCH = 2
_UP = 1
SHARED = "through a switch: all peers share these lanes"
_ANCESTORS = {
    0: Ancestor.INTERNAL,
    10: Ancestor.SINGLE,
    20: Ancestor.MULTIPLE,
    30: Ancestor.HOST_BRIDGE,
    40: Ancestor.NODE,
    50: Ancestor.SYSTEM,
}
_READ = 0
_ACCESS = {0: PeerAccess.OK, 4: PeerAccess.DISABLED, 6: PeerAccess.UNKNOWN}
ERROR_COUNTERS = ("replay", "recovery", "crc-flit", "crc-data", "ecc-data")
"""What ``nvmlDeviceGetNvLinkErrorCounter`` counts for one link, by its number."""


class Nvlink(msgspec.Struct, frozen=True, kw_only=True):
    """One link of a GPU: its number, state, and far end (``peer``: a PCI address)."""

    number: int
    up: bool
    switch: bool = False
    peer: str | None = None


def attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function of NVML gives, None where it cannot. A lost GPU is raised."""
    try:
        return call(*arguments)
    except Exception as error:  # a guard around the library: links that cannot be asked are links nobody knows
        code = e.code_of(error)
        if code is None or code in e.LOST:
            raise
        return None


def find_links(nvml: Any, handle: Any) -> tuple[Nvlink, ...]:
    """Return a GPU's NVLinks; none where the board has none."""
    fields = attempt(nvml.nvmlDeviceGetFieldValues, handle, (LINK_COUNT,))
    told = fields is not None and fields[0].nvmlReturn == 0
    count = int(fields[0].value.uiVal) if told else MAX_LINKS
    found: list[Nvlink] = []
    for number in range(min(count, MAX_LINKS)):
        state = attempt(nvml.nvmlDeviceGetNvLinkState, handle, number)
        if state is None:
            if told:
                continue
            break  # boards that do not tell their count refuse the first number beyond it
        kind = attempt(nvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, number)
        far = attempt(nvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, number)
        address = text(far.busId) if far is not None else ""
        found.append(
            Nvlink(
                number=number,
                up=state == _UP,
                switch=kind == _SWITCH,
                peer=pci_address(address) if ":" in address else None,
            )
        )
    return tuple(found)


def speed_of(nvml: Any, handle: Any) -> float | None:
    """Return bytes a second of one link in one direction, None where the driver does not tell."""
    fields = attempt(nvml.nvmlDeviceGetFieldValues, handle, (SPEED_COMMON,))
    if fields is None or fields[0].nvmlReturn != 0 or not fields[0].value.uiVal:
        return None
    return float(fields[0].value.uiVal) * 1e6


def wiring(board: Board, all_links: Mapping[str, tuple[Nvlink, ...]], addresses: Mapping[str, str]) -> tuple[Link, ...]:
    """Return a GPU's NVLinks as links to devices, by peer; ``addresses`` maps PCI addresses to ids of GPUs.

    Links to a switch lead to every other GPU that has some, over the same lanes.
    """
    mine = all_links.get(board.uuid, ())
    speed = speed_of(board.nvml, board.handle) if mine else None
    found: list[Link] = []
    through = [link for link in mine if link.switch]
    if through:
        for uuid, theirs in all_links.items():
            if uuid != board.uuid and any(link.switch for link in theirs):
                found.append(_link(uuid, through, speed, SHARED))
    direct: dict[str | None, list[Nvlink]] = {}
    for link in mine:
        if not link.switch and (link.up or link.peer is not None):
            direct.setdefault(addresses.get(link.peer or ""), []).append(link)
    found.extend(_link(peer, links, speed, "") for peer, links in direct.items() if peer != board.uuid)
    return tuple(found)


def _link(peer: str | None, links: Sequence[Nvlink], speed: float | None, detail: str) -> Link:
    up = sum(link.up for link in links)
    lanes = up or len(links)
    return Link(
        type="nvlink",
        peer=peer,
        lanes=lanes,
        bandwidth_bytes_per_second=None if speed is None else speed * lanes,
        state="up" if up else "down",
        detail=detail,
    )


def peers_of(board: Board, others: Sequence[Board]) -> list[Peer]:
    """Return the other GPUs of the machine, nearest first; one that is lost has no known way."""
    nvml = board.nvml
    links = [link for link in find_links(nvml, board.handle) if link.up]
    through = sum(link.switch for link in links)
    found: list[Peer] = []
    for other in others:
        if other is board or other.lost:
            continue
        level = _of_other(nvml.nvmlDeviceGetTopologyCommonAncestor, board.handle, other.handle)
        access = _of_other(nvml.nvmlDeviceGetP2PStatus, board.handle, other.handle, _READ)
        direct = sum(link.peer == other.address for link in links)
        switched = direct == 0 and through > 0 and _on_switch(nvml, other)
        found.append(
            Peer(
                device=other.uuid,
                ancestor=_ANCESTORS.get(level, Ancestor.SYSTEM),
                access=PeerAccess.UNKNOWN if access is None else _ACCESS.get(access, PeerAccess.NOT_SUPPORTED),
                nvlinks=through if switched else direct,
                through_switch=switched,
            )
        )
    order = tuple(Ancestor)
    found.sort(key=lambda peer: (-peer.nvlinks, order.index(peer.ancestor)))
    return found


def _of_other(call: Callable[..., Any], *arguments: Any) -> Any:
    # The other GPU may be lost: then the way to it is unknown, and this GPU answers all the same.
    try:
        return call(*arguments)
    except Exception as error:  # a guard around the library
        if e.code_of(error) is None:
            raise
        return None


def _on_switch(nvml: Any, other: Board) -> bool:
    return any(
        _of_other(nvml.nvmlDeviceGetNvLinkRemoteDeviceType, other.handle, link) == _SWITCH for link in other.links
    )


def link_errors(board: Board) -> dict[int, dict[str, int]]:
    """Return the error counts of every link by its number; what the board does not count is left out."""
    found: dict[int, dict[str, int]] = {}
    for link in board.links:
        for number, name in enumerate(ERROR_COUNTERS):
            count = attempt(board.nvml.nvmlDeviceGetNvLinkErrorCounter, board.handle, link, number)
            if count is not None:
                found.setdefault(link, {})[name] = int(count)
    return found
