"""What stays the same about a host's GPUs, as NVML tells it: identity, bounds, links, MIG geometry."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from hal.interfaces.gpu import Ancestor, Partition
from hal_mocks.gpu_boards import LEAST_POWER_SHARE
from hal_mocks.gpu_describe import Place, ancestor
from hal_mocks.gpu_measure import PCIE_GTS
from hal_mocks.gpu_mig import MEDIA, compute_slices, instances_max, partition_id
from hal_mocks.gpu_thermal import CLOCKS, OTHER_CLOCKS, SLOWDOWN_CELSIUS
from hal_mocks.graph import Gpu, Host, MigProfile
from hal_mocks.nvml.layout import number

ARCHITECTURES = {"Turing": 6, "Ampere": 7, "Ada": 8, "Ada Lovelace": 8, "Hopper": 9, "Blackwell": 10}
"""``nvmlDeviceArchitecture_t``."""

LEVELS = {
    Ancestor.INTERNAL: 0,
    Ancestor.SINGLE: 10,
    Ancestor.MULTIPLE: 20,
    Ancestor.HOST_BRIDGE: 30,
    Ancestor.NODE: 40,
    Ancestor.SYSTEM: 50,
}
"""``nvmlGpuTopologyLevel_t``."""

_CORES = {"Turing": 64, "Ampere": 64}  # of the data-centre chips; from Hopper on 128 a multiprocessor
_LINK_VERSIONS = {"Ampere": 4, "Hopper": 6, "Blackwell": 7}
_SHUTDOWN_CELSIUS = 92
_PROFILE_IDS = {0: 19, 7: 20, 9: 15, 1: 14, 2: 9, 3: 5, 4: 0}
_BRAND_TESLA, _BRAND_NVIDIA = 2, 14
_GPU, _SWITCH = 0, 2
_SWITCH_PCI = 0x22A310DE


def write_gpu(record: Any, index: int, place: Place, peers: list[Place]) -> None:
    """Fill in what does not change of the ``index``-th GPU of a host."""
    gpu, attributes = place.gpu, place.device.attributes
    record.name = gpu.model.encode()
    record.uuid = gpu.uuid.encode()
    record.serial = gpu.serial.encode()
    record.minor = record.board_id = index
    _write_pci(record, place)
    record.architecture = ARCHITECTURES.get(gpu.architecture, 0xFFFFFFFF)
    record.brand = _BRAND_NVIDIA if record.architecture >= ARCHITECTURES["Ampere"] else _BRAND_TESLA
    major, _, minor = gpu.compute_capability.partition(".")
    record.capability_major, record.capability_minor = int(major), int(minor or 0)
    chip = f"{record.pci_id >> 16:04X}"
    record.vbios = f"96.00.{chip[:2]}.{chip[2:]}.01".encode()
    record.part_number = f"900-2G{chip}-0000-000".encode()
    record.inforom_image, record.inforom_ecc = b"G520.0200.00.05", b"7.16"
    record.memory_bytes = gpu.memory_bytes
    record.bar1_bytes = max(256 << 20, 1 << (gpu.memory_bytes - 1).bit_length())
    record.memory_bus_width = 5120 if gpu.memory_bandwidth_bytes_per_second > 1e12 else 256
    record.multiprocessors = gpu.multiprocessors
    record.cores = gpu.multiprocessors * _CORES.get(gpu.architecture, 128)
    clocks = CLOCKS.get(gpu.architecture, OTHER_CLOCKS)
    record.sm_max_mhz, record.memory_max_mhz = clocks.sm_max_hz // 1_000_000, clocks.memory_hz // 1_000_000
    own = float(gpu.power_limit_watts)
    record.power_limit_own_mw = record.power_limit_max_mw = round(1000 * own)
    record.power_limit_min_mw = 1000 * round(own * LEAST_POWER_SHARE)
    record.slowdown_celsius, record.shutdown_celsius = int(SLOWDOWN_CELSIUS), _SHUTDOWN_CELSIUS
    record.remaps_rows = float(gpu.compute_capability) >= 8.0
    record.has_ecc = 1
    record.coherent = gpu.coherent
    node = attributes["numa_node"].value
    record.numa_node = node if isinstance(node, int) else -1
    for word, bits in enumerate(_cpu_words(place.host, record.numa_node)):
        record.cpus[word] = bits
    _write_links(record, place, peers)
    _write_profiles(record, gpu)


def _write_pci(record: Any, place: Place) -> None:
    gpu, function = place.gpu, place.host.function(place.gpu.pci)
    if not gpu.pci or function is None:
        return
    domain, bus, rest = gpu.pci.split(":")
    record.domain, record.bus, record.device = int(domain, 16), int(bus, 16), int(rest.partition(".")[0], 16)
    # NVML writes a domain of eight digits, in capitals.
    record.bus_id = f"{record.domain:08X}:{record.bus:02X}:{record.device:02X}.0".encode()
    record.pci_id = int(function.device, 16) << 16 | int(function.vendor, 16)
    record.subsystem_id = int(function.subsystem_device, 16) << 16 | int(function.subsystem_vendor, 16)
    record.pcie_generation_max = generation_of(function.max_speed_gts)
    record.pcie_width_max = function.max_width


def generation_of(speed_gts: object) -> int:
    """Return the PCIe generation of a speed in GT/s; 0 for no link."""
    speed = float(speed_gts) if isinstance(speed_gts, int | float) else 0.0
    return max((generation for generation, gts in PCIE_GTS.items() if gts <= speed), default=0)


def _cpu_words(host: Host, node: int) -> list[int]:
    """Return the CPUs near a GPU as words of 64 bits; all of the host where no node is known."""
    mask = 0
    for numa in host.numa:
        if node not in (-1, numa.id):
            continue
        for part in filter(None, numa.cpus.split(",")):
            first, _, last = part.partition("-")
            for cpu in range(int(first), int(last or first) + 1):
                mask |= 1 << cpu
    words = number("HAL_CPU_WORDS")
    return [mask >> 64 * word & 0xFFFF_FFFF_FFFF_FFFF for word in range(words)]


def _write_links(record: Any, place: Place, peers: list[Place]) -> None:
    indices = {peer.gpu.name: index for index, peer in enumerate(peers)}
    most = number("HAL_LINKS")
    count = 0
    for nvlink in place.gpu.nvlinks:
        for _ in range(min(nvlink.links, most - count)):
            link = record.links[count]
            peer = indices.get(nvlink.peer)
            link.remote_link = count
            if peer is None:
                link.peer, link.remote_type, link.pci_id = number("HAL_NOWHERE"), _SWITCH, _SWITCH_PCI
                link.bus_id = f"{record.domain:08X}:{0xC0 + count % 4:02X}:00.0".encode()
            else:
                other = peers[peer].gpu.pci
                link.peer, link.remote_type = peer, _GPU
                link.bus_id = f"0000{other}".upper().encode() if other else b""
            count += 1
    record.link_count = count
    record.link_version = _LINK_VERSIONS.get(place.gpu.architecture, 0) if count else 0
    if count:
        first = place.gpu.nvlinks[0]
        record.link_mbps = round(first.bandwidth_bytes_per_second / first.links / 1e6)


def _write_profiles(record: Any, gpu: Gpu) -> None:
    record.has_mig = bool(gpu.mig)
    record.compute_slices = compute_slices(gpu)
    record.memory_slices = max((profile.memory_slices for profile in gpu.mig), default=0)
    record.profile_count = min(len(gpu.mig), number("HAL_PROFILES"))
    for at, profile in enumerate(gpu.mig[: record.profile_count]):
        entry = record.profiles[at]
        media = profile.name.endswith(MEDIA)
        engines = max(1, profile.memory_slices)
        entry.name = profile.name.encode()
        entry.memory_bytes = profile.memory_bytes
        entry.index = profile_index(gpu, profile)
        entry.id = _PROFILE_IDS.get(entry.index, 32 + entry.index)
        entry.compute_slices, entry.memory_slices = profile.compute_slices, profile.memory_slices
        entry.instances = instances_max(gpu, profile)
        whole = profile.compute_slices == record.compute_slices
        a_slice = gpu.multiprocessors // (record.compute_slices + 1)
        entry.multiprocessors = gpu.multiprocessors if whole else a_slice * profile.compute_slices
        entry.copy_engines, entry.decoders = engines, engines
        entry.media = media
        entry.jpegs = entry.ofas = 1 if media or whole else 0
        entry.place_count = min(len(profile.placements), number("HAL_PLACES"))
        for where, start in enumerate(profile.placements[: entry.place_count]):
            place = entry.places[where]
            place.start = start
            place.instance_id = instance_id(profile, start)
            place.uuids[:] = _uuids(gpu, profile.name, start)


def profile_index(gpu: Gpu, profile: MigProfile) -> int:
    """Return the ``NVML_GPU_INSTANCE_PROFILE_`` number: by compute slices, media engines, and twice the memory."""
    if profile.name.endswith(MEDIA):
        return 7 if profile.compute_slices == 1 else 8
    if profile.compute_slices == 1:
        least = min(p.memory_slices for p in gpu.mig if p.compute_slices == 1)
        return 0 if profile.memory_slices == least else 9
    return {2: 1, 3: 2, 4: 3, 7: 4, 8: 5, 6: 6}[profile.compute_slices]


def instance_id(profile: MigProfile, start: int) -> int:
    """Return a GPU instance's id: of its place alone, as that of two instances is never the same."""
    size = profile.memory_slices
    return {8: 0, 4: 1 + start // 4, 2: 3 + start // 2, 1: 7 + start}.get(size, 16 + 8 * size + start)


def instance_ids(partitions: Iterable[Partition], gpu: Gpu) -> dict[str, int]:
    """Return the ids of the GPU instances in which partitions lie."""
    profiles = {profile.name: profile for profile in gpu.mig}
    return {part.id: instance_id(profiles[part.profile], part.start) for part in partitions}


def _uuids(gpu: Gpu, profile: str, start: int) -> bytes:
    """Return the UUIDs of the MIG devices in an instance, by compute instance: the first is the partition's own."""
    found = uuid.UUID(partition_id(gpu, profile, start).removeprefix("MIG-")).bytes
    for compute in range(1, number("HAL_COMPUTES")):
        found += uuid.uuid5(uuid.NAMESPACE_OID, f"{gpu.uuid}/{profile}/{start}/{compute}").bytes
    return found


def nearness(places: list[Place]) -> bytes:
    """Return the level of each pair of GPUs, row by row."""
    return bytes(
        LEVELS[Ancestor.INTERNAL if one is other else ancestor(one, other)] for one in places for other in places
    )
