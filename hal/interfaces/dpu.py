"""What an opened DPU can do: mode, boot, image, console, services, offloads, flows, virtual functions, NVMe.

A DPU is a card with cores and memory of its own that owns NICs: its RDMA NICs are its children and share its fate.
Sources: BlueField modes of operation and BSP manuals, the rshim driver's ``boot``, ``misc`` and ``console`` files,
DOCA's libraries for the offloads, tc-flower for flow rules, SR-IOV's ``sriov_numvfs`` for virtual functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from os import PathLike
from typing import Protocol, runtime_checkable

import msgspec

from hal.interfaces.common import Handle
from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation

BOOT_TIMEOUT_SECONDS = 150.0
"""How long a card may take from reset to ready (rshim's default BOOT_TIMEOUT)."""

Buffer = bytes | bytearray | memoryview


class DpuMode(StrEnum):
    """Who rules the card. ``restricted`` is zero-trust: the card's own cores rule, the host may not touch it."""

    DPU = "dpu"
    NIC = "nic"
    RESTRICTED = "restricted"


class BootState(StrEnum):
    """How far the card has come since power came on."""

    OFF = "off"
    ROM = "rom"
    UEFI = "uefi"
    OS = "os"
    READY = "ready"


class ResetLevel(StrEnum):
    """``soft`` restarts the card's cores, ``hard`` its boot ROM too. Neither applies a pending mode."""

    SOFT = "soft"
    HARD = "hard"


class ModeReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The mode now, and the one that the next power cycle brings (None: no change)."""

    current: DpuMode
    pending: DpuMode | None = None


class BootReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where booting stands. ``since_at`` is when the state was entered (seconds since the epoch, 0 if not known);
    ``stage_seconds`` says how long each state that is over took; ``boots`` counts boots that were seen.
    """

    state: BootState
    since_at: float = 0.0
    stage_seconds: dict[BootState, float] = {}
    boots: int = 0


class Image(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the card boots. ``sha256`` is empty for the one it came with."""

    name: str
    size_bytes: int = 0
    sha256: str = ""
    installed_at: float = 0.0


class ConsoleLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the card's console: its number from the beginning of the log, when it came, and the text."""

    number: int
    at: float
    text: str


class ServiceState(StrEnum):
    """``exited`` ended by itself, ``stopped`` was told to."""

    RUNNING = "running"
    EXITED = "exited"
    STOPPED = "stopped"


class ServiceSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What shall run on the card's cores: a command, an OCI image, or a command in an image.

    ``ports`` are TCP or UDP ports that it will listen on, each used once a card. ``cores`` and ``memory_bytes`` are
    limits that are enforced and reserved; None reserves nothing.
    """

    name: str
    command: tuple[str, ...] = ()
    image: str = ""
    env: dict[str, str] = {}
    ports: tuple[int, ...] = ()
    cores: int | None = None
    memory_bytes: int | None = None


class Service(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A service as it is now. ``pid`` is the card's; ``exit_code`` is negative for a signal, None if not known."""

    spec: ServiceSpec
    state: ServiceState
    pid: int = 0
    started_at: float = 0.0
    exit_code: int | None = None


class Offload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One function that this card's engines compute. ``max_bytes`` bounds one buffer, None if nothing is known."""

    name: str
    max_bytes: int | None = None
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


class FlowMatch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which packets: all fields that are set must fit, none set fits all.

    ``in_port`` is a port of the card or a representor (``p0``, ``pf0vf1``); ``ethertype`` a number (0x0800);
    ``protocol`` the IP protocol's number; ``source`` and ``destination`` an address or a prefix
    (``10.0.0.0/8``, ``fe80::/10``).
    """

    in_port: str | None = None
    ethertype: int | None = None
    protocol: int | None = None
    source: str | None = None
    destination: str | None = None
    source_port: int | None = None
    destination_port: int | None = None
    vlan: int | None = None


class FlowVerdict(StrEnum):
    """What happens to a packet; ``redirect`` sends it to another port."""

    PASS = "pass"
    DROP = "drop"
    REDIRECT = "redirect"


class FlowAction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What to do with the packets that fit; ``port`` says where ``redirect`` sends them."""

    verdict: FlowVerdict
    port: str | None = None


class FlowRule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A rule with its counters. A lower ``priority`` is asked first, as in tc; among equals the older rule."""

    id: int
    match: FlowMatch
    action: FlowAction
    priority: int = 100
    packets: int = 0
    bytes: int = 0


class NvmeExposure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A namespace that the card shows to its host. ``backing`` is ``memory`` or a drive of the card."""

    name: str
    nsid: int
    size_bytes: int
    backing: str


@runtime_checkable
class Modes(Protocol):
    """Cards that can be a DPU or a plain NIC."""

    def mode(self, *, deadline: Deadline | None = None) -> ModeReport:
        """Return the mode now and the pending one. Allowed in every mode."""
        ...

    def set_mode(self, mode: DpuMode, *, deadline: Deadline | None = None) -> ModeReport:
        """Choose the mode that the next power cycle brings; nothing changes before it.

        Raises ``AccessDenied`` in restricted mode: only the card's own controller leads out of it.
        """
        ...


@runtime_checkable
class Boots(Protocol):
    """Cards that boot by themselves. While they do, their NICs are down and most verbs raise ``DeviceBusy``."""

    def boot(self, *, deadline: Deadline | None = None) -> BootReport:
        """Return how far the card has come. ``AccessDenied`` in restricted mode."""
        ...

    def reset(self, level: ResetLevel = ResetLevel.SOFT, *, deadline: Deadline | None = None) -> Operation[None]:
        """Restart the card; done when it is ready again.

        Its services, flow rules, virtual functions and NVMe exposures are gone, its NICs are down until it is ready.
        The operation fails with ``DeadlineExceeded`` when it is not ready within :data:`BOOT_TIMEOUT_SECONDS`.
        """
        ...

    def power_cycle(self, *, deadline: Deadline | None = None) -> Operation[None]:
        """Take the card's power away and give it back: as a hard reset, and a pending mode becomes the current one."""
        ...


@runtime_checkable
class Images(Protocol):
    """Cards whose operating system can be replaced."""

    def image(self, *, deadline: Deadline | None = None) -> Image:
        """Return what the card boots."""
        ...

    def push_image(self, image: Buffer | str | PathLike[str], *, deadline: Deadline | None = None) -> Operation[Image]:
        """Write a boot stream (a ``.bfb``: the bytes, or its path) and boot from it.

        ``progress`` runs from 0 to 1 over writing and booting. ``InvalidArgument`` if it is no boot stream: nothing
        was written. ``DeadlineExceeded`` if the card is not ready in time: the image is written.
        """
        ...


@runtime_checkable
class Consoles(Protocol):
    """Cards whose serial console can be read."""

    def read_console(self, since: int = 0, *, deadline: Deadline | None = None) -> Sequence[ConsoleLine]:
        """Return the lines from number ``since`` on that have come so far."""
        ...

    def console(self, since: int = 0, *, deadline: Deadline | None = None) -> Iterator[str]:
        """Yield the text line by line: without a deadline what is there, with one also what comes until then."""
        ...


@runtime_checkable
class Services(Protocol):
    """Cards that run other people's programs. A service belongs to the card: it survives the process that deployed
    it, and ends with the lease, a reset or :meth:`stop`. ``Unsupported`` in NIC mode.
    """

    def deploy(self, spec: ServiceSpec, *, deadline: Deadline | None = None) -> Operation[Service]:
        """Start a service; done when it runs.

        ``DeviceBusy`` if the name or a port is in use or cores or memory are used up; ``InvalidArgument`` if the
        command does not exist or a limit makes no sense; ``Unsupported`` for an image that the card cannot run.
        """
        ...

    def services(self, *, deadline: Deadline | None = None) -> Sequence[Service]:
        """Return all services, also those that have ended, in the order of their start."""
        ...

    def stop(self, name: str, *, grace_seconds: float = 5.0, deadline: Deadline | None = None) -> Operation[Service]:
        """Ask the service to end, and after the grace make it; a service that has ended is no error."""
        ...

    def logs(self, name: str, *, tail_bytes: int = 65536, deadline: Deadline | None = None) -> str:
        """Return the end of what the service wrote to stdout and stderr; also after it has ended."""
        ...


@runtime_checkable
class Offloads(Protocol):
    """Cards with engines. What a card has depends on its generation and mode: ask, never assume.

    Names and their parameters, all buffers contiguous bytes:

    ========================  ==================================================================================
    ``crc32``                 4 bytes, big-endian; the polynomial of Ethernet and zlib. ``initial``: int
    ``sha1 sha256 sha512``    the digest
    ``compress``              a raw deflate stream (RFC 1951). ``level``: 1 to 9
    ``decompress``            of a raw deflate stream. ``max_output_bytes``: more is an error
    ``aes-gcm-encrypt``       ciphertext, then the 16-byte tag. ``key``: 16 or 32 bytes, ``nonce``: 12 bytes, ``aad``
    ``aes-gcm-decrypt``       of ciphertext and tag; the same parameters
    ========================  ==================================================================================
    """

    def offloads(self, *, deadline: Deadline | None = None) -> Sequence[Offload]:
        """Return the functions that this card computes now: none in NIC mode."""
        ...

    def offload(
        self, name: str, buffer: Buffer, *, deadline: Deadline | None = None, **parameters: object
    ) -> Operation[bytes]:
        """Compute one function over a buffer, which must not change until the operation is done.

        Raises ``Unsupported`` at once for a function that the card does not have, ``InvalidArgument`` for a missing,
        unknown or wrong parameter or a buffer above ``max_bytes``. The operation fails with ``InvalidArgument`` for
        a malformed stream and ``AuthenticationFailed`` if the tag does not fit: no plaintext is given then.
        """
        ...


@runtime_checkable
class Flows(Protocol):
    """Cards whose switch can be told what to do with packets."""

    def add_flow(
        self, match: FlowMatch, action: FlowAction, *, priority: int = 100, deadline: Deadline | None = None
    ) -> FlowRule:
        """Add a rule and return it with its id. ``DeviceBusy`` if the table is full."""
        ...

    def delete_flow(self, rule_id: int, *, deadline: Deadline | None = None) -> None:
        """Take a rule away. ``InvalidArgument`` if there is none of that id."""
        ...

    def flows(self, *, deadline: Deadline | None = None) -> Sequence[FlowRule]:
        """Return all rules with their counters, in the order in which they are asked."""
        ...


@runtime_checkable
class VirtualFunctions(Protocol):
    """Cards that can show more than one function of themselves."""

    def vf_count(self, *, deadline: Deadline | None = None) -> int:
        """Return how many virtual functions there are."""
        ...

    def max_vf_count(self, *, deadline: Deadline | None = None) -> int:
        """Return how many there can be; 0 on a card that cannot have any."""
        ...

    def set_vf_count(self, count: int, *, deadline: Deadline | None = None) -> None:
        """Make so many. ``InvalidArgument`` beyond the bounds; ``DeviceBusy`` when going from some to another number
        than none, as the kernel's ``sriov_numvfs`` does.
        """
        ...


@runtime_checkable
class NvmeExposures(Protocol):
    """Cards that pretend to be NVMe drives."""

    def nvme_backings(self, *, deadline: Deadline | None = None) -> Mapping[str, int]:
        """Return what a namespace can be made of, with the bytes that are left: ``memory`` and the card's drives."""
        ...

    def expose_nvme(
        self, name: str, *, size_bytes: int, backing: str = "memory", deadline: Deadline | None = None
    ) -> NvmeExposure:
        """Show a namespace to the host. ``DeviceBusy`` if the name is in use or the backing has too little left."""
        ...

    def nvme_exposures(self, *, deadline: Deadline | None = None) -> Sequence[NvmeExposure]:
        """Return what is shown, by namespace id."""
        ...

    def remove_nvme(self, name: str, *, deadline: Deadline | None = None) -> None:
        """Take a namespace away and forget its data. ``InvalidArgument`` if there is none of that name."""
        ...


@runtime_checkable
class Dpu(
    Modes,
    Boots,
    Images,
    Consoles,
    Services,
    Offloads,
    Flows,
    VirtualFunctions,
    NvmeExposures,
    Handle,
    Protocol,
):
    """An opened DPU.

    In restricted mode every verb but ``mode``, ``telemetry`` and ``children`` raises ``AccessDenied``; in NIC mode
    services, exposures and offloads are ``Unsupported``. Telemetry names: ``temperature_celsius``,
    ``power_watts``, ``arm_utilization_percent``, ``memory_total_bytes``, ``memory_used_bytes``, ``uptime_seconds``.
    """

    def children(self, *, deadline: Deadline | None = None) -> Sequence[str]:
        """Return the ids of the devices that share the card's fate: its RDMA NICs."""
        ...
