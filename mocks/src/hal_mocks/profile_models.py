"""The library of hardware models: what is printed on a data sheet, so that a profile need only name the model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import msgspec

from hal_mocks.profile_schema import Mistake, Size, Table

PROFILES = Path(__file__).parent / "profiles"
_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGTP", 1):
    _UNITS[f"{_letter}iB"] = 1024**_power
    _UNITS[f"{_letter}B"] = 1000**_power
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,6})?)\s*([KMGTP]?i?B?)\s*")
_PCI_ID = r"^[0-9a-f]{4}:[0-9a-f]{4}$"


class Model(Table, kw_only=True):
    """What all models have. ``pci`` and ``subsystem`` are ``vendor:device`` in hex."""

    title: str = ""
    pci: str = ""
    subsystem: str = "0000:0000"
    class_code: str = msgspec.field(default="", name="class")
    driver: str = ""
    firmware: str = ""
    speed_gts: float = 0.0
    width: int = 0


class GpuModel(Model, kw_only=True):
    """A GPU."""

    architecture: str
    compute_capability: str
    memory: Size
    multiprocessors: int
    power_watts: float
    memory_bandwidth: float
    nvlinks: int = 0
    nvlink_bandwidth: float = 0.0
    mig: str = ""


class MigEntry(Table, kw_only=True):
    """One line of a MIG geometry."""

    compute: int
    slices: int
    memory: Size
    at: tuple[int, ...]


class RnicModel(Model, kw_only=True):
    """An RDMA NIC."""

    hca: str
    link_layer: str
    rate: float
    board_id: str = ""


class DpuModel(Model, kw_only=True):
    """A DPU card."""

    generation: str
    hca: str
    management: str
    psid: str
    ports: int
    link_layer: str
    rate: float
    cores: int
    memory: Size
    part_number: str = ""
    offloads: tuple[str, ...] = ()
    max_vfs: int = 0


class NicModel(Model, kw_only=True):
    """A network interface without RDMA."""

    rate: float


class NvmeModel(Model, kw_only=True):
    """An NVMe drive."""

    size: Size


class PmemModel(Model, kw_only=True):
    """A module of persistent or CXL memory."""

    capacity: Size
    media: str
    persistence_domain: str
    granule: int = 256
    vendor: str = "8086"


class UpmemModel(Model, kw_only=True):
    """An UPMEM DIMM."""

    part_number: str
    chip: str
    ranks: int
    control_interfaces: int
    dpus_per_ci: int
    mram: Size
    wram: Size
    iram: Size
    tasklets: int
    clock_hz: int


class SwitchModel(Model, kw_only=True):
    """A PCIe switch."""


class CpuModel(Model, kw_only=True):
    """A CPU, for what its root ports are called."""

    root_port: str = "8086:352a"


SECTIONS: dict[str, tuple[str, type[Table]]] = {
    "gpu": ("gpu.toml", GpuModel),
    "mig": ("mig.toml", MigEntry),
    "rnic": ("network.toml", RnicModel),
    "dpu": ("network.toml", DpuModel),
    "nic": ("network.toml", NicModel),
    "nvme": ("storage.toml", NvmeModel),
    "pmem": ("storage.toml", PmemModel),
    "upmem": ("storage.toml", UpmemModel),
    "switch": ("storage.toml", SwitchModel),
    "cpu": ("storage.toml", CpuModel),
}

M = TypeVar("M", bound=Table)


class Library:
    """Our models, and those that a profile adds (``[model.gpu.MyGPU]``)."""

    def __init__(self, own: dict[str, dict[str, dict[str, object]]]) -> None:
        self.own = own
        for section in own:
            if section not in SECTIONS:
                raise Mistake(("model", section), f"unknown sort of model {section!r}", one_of(section, SECTIONS))

    def names(self, section: str) -> list[str]:
        """Return the models of a section, our own last."""
        return [*self.own.get(section, ()), *_read(SECTIONS[section][0]).get(section, ())]

    def find(self, section: str, name: str, kind: type[M], path: tuple[str | int, ...]) -> M:
        """Return a model by name; ``path`` is where it was asked for."""
        own = self.own.get(section, {}).get(name)
        if own is not None:
            return convert(own, kind, ("model", section, name))
        shipped = _read(SECTIONS[section][0]).get(section, {}).get(name)
        if shipped is None:
            raise Mistake(path, f"unknown {section} model {name!r}", one_of(name, self.names(section)))
        return convert(shipped, kind, ())

    def mig(self, name: str, path: tuple[str | int, ...]) -> dict[str, MigEntry]:
        """Return a MIG geometry by name."""
        own = self.own.get("mig", {}).get(name)
        if own is not None:
            return {key: convert(entry, MigEntry, ("model", "mig", name, key)) for key, entry in own.items()}
        shipped = _read("mig.toml")["mig"].get(name)
        if shipped is None:
            raise Mistake(path, f"unknown MIG geometry {name!r}", one_of(name, self.names("mig")))
        return {key: convert(entry, MigEntry, ()) for key, entry in shipped.items()}


@lru_cache(maxsize=8)
def _read(file: str) -> dict[str, dict[str, dict[str, object]]]:
    import tomllib

    return tomllib.loads((PROFILES / "models" / file).read_text("utf-8"))


_AT = re.compile(r" - at `(?:key in )?\$([^`]*)`$")
_NOT_ONE_OF = re.compile(r"^Invalid enum value '([^']*)'")
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")


def convert(value: object, kind: type[M], path: tuple[str | int, ...]) -> M:
    """Return a table as its struct, or raise :class:`Mistake` at the offending key."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        below: list[str | int] = []
        found = _AT.search(message)
        if found:
            message = message[: found.start()]
            for index, key in re.findall(r"\[(\d+)\]|\.([A-Za-z0-9_-]+)", found.group(1)):
                below.append(int(index) if index else key)
        unknown = _UNKNOWN.search(message)
        if unknown:
            key = unknown.group(1)
            allowed = [field.encode_name for field in _fields_at(kind, below)]
            raise Mistake((*path, *below, key), f"unknown key {key!r}", one_of(key, allowed)) from None
        wrong = _NOT_ONE_OF.search(message)
        hint = one_of(wrong.group(1), _words_at(kind, below)) if wrong else ""
        raise Mistake((*path, *below), message[:1].lower() + message[1:].replace("`", ""), hint) from None


def _words_at(kind: type[Table], below: list[str | int]) -> list[str]:
    """Return the words that are allowed for the key at ``below``."""
    import typing

    found: list[str] = []
    for field in _fields_at(kind, below[:-1]):
        if field.encode_name == below[-1]:
            for choice in (field.type, *typing.get_args(field.type)):
                found += typing.get_args(choice) if typing.get_origin(choice) is typing.Literal else ()
    return found


def _fields_at(kind: type[Table], below: list[str | int]) -> list[msgspec.structs.FieldInfo]:
    """Return the keys that the table at ``below`` may have, with their types."""
    import types
    import typing

    current: object = kind
    for step in below:
        if isinstance(step, str) and isinstance(current, type) and issubclass(current, msgspec.Struct):
            names = {field.encode_name: field.type for field in msgspec.structs.fields(current)}
            current = names.get(step)
        arguments = typing.get_args(current)
        union = typing.get_origin(current) in (typing.Union, types.UnionType)
        for choice in arguments if union else (current,):
            inner = typing.get_args(choice)
            if isinstance(step, int) and inner:
                current = inner[0]
            elif isinstance(choice, type) and issubclass(choice, msgspec.Struct) and isinstance(step, str):
                current = choice
    if isinstance(current, type) and issubclass(current, msgspec.Struct):
        return list(msgspec.structs.fields(current))
    return [
        field
        for choice in (*typing.get_args(current), kind)
        if isinstance(choice, type) and issubclass(choice, msgspec.Struct)
        for field in msgspec.structs.fields(choice)
    ]


def one_of(word: str, allowed: Iterable[str]) -> str:
    """Return a hint: the nearest of the allowed words, and all of them if they are few."""
    known = list(dict.fromkeys(allowed))
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    near = near or [name for name in known if len(word) > 1 and word.lower() in name.lower()]
    listed = ", ".join(known[:24]) + (", ..." if len(known) > 24 else "")
    if near:
        return f"{near[0]!r}? allowed are {listed}"
    return f"allowed are {listed}" if known else "there are none"


def size_bytes(value: Size, path: tuple[str | int, ...]) -> int:
    """Return a size in bytes: a whole number, or text with a unit (``80 GiB``, ``3.84 TB``)."""
    if isinstance(value, int):
        found = value
    else:
        match = _SIZE.fullmatch(value)
        if match is None or match.group(2) not in _UNITS:
            raise Mistake(path, f"{value!r} is no size", "a number of bytes, or text such as '80 GiB' or '3.84 TB'")
        found = round(float(match.group(1)) * _UNITS[match.group(2)])
    if not 0 <= found < 1 << 60:
        raise Mistake(path, f"{value!r} is no size that a machine can have", "0 up to 1 EiB")
    return found


def split_id(text: str, path: tuple[str | int, ...]) -> tuple[str, str]:
    """Return vendor and device of ``10de:2330``."""
    if not re.fullmatch(_PCI_ID, text):
        raise Mistake(path, f"{text!r} is no PCI id", "vendor:device in hex, such as '10de:2330'")
    vendor, _, device = text.partition(":")
    return vendor, device
