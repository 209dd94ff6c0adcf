"""All persistent memory of some machines: sysfs as the core reads it, the tools' words, and region files."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

import msgspec

from hal.drivers.contract import Discovery, HostRoot, Problem
from hal.errors import DriverError, HalError
from hal.host.cxl import find_cxl
from hal.host.pmem import find_dax, find_regions
from hal.host.scan import Scan
from hal.host.tree import HostTree, Tree
from hal.interfaces.deadline import Deadline
from hal.model.attributes import Absence, Attribute, absent, known
from hal.model.device import Device, Location, alias
from hal.model.health import Condition
from hal.model.kind import Kind
from hal_pmem.baseline import Baseline
from hal_pmem.enrichment import HEALTH_NAMES, dax_modes, module_facts, why_silent
from hal_pmem.file_setup import VARIABLE, find_files
from hal_pmem.files import GRANULE_BYTES, LINE_BYTES, FileRegion
from hal_pmem.health import judge_module, judge_region, merged
from hal_pmem.poison import SECTOR_BYTES, parse_badblocks
from hal_pmem.tools import Answer, Tools

NAME = "pmem"
_BUSES = ("bus/nd/devices", "bus/dax/devices", "bus/cxl/devices")
_TOOL_SHARE = 0.5
"""Of the time that is left, what the tools may take: what sysfs said is never lost to a tool that hangs."""
_MOST_TOOL_SECONDS = 2.0


class Look:
    """One look at one machine: devices, and what went wrong. ``files`` are the regions behind file devices."""

    def __init__(self) -> None:
        self.devices: list[Device] = []
        self.problems: list[Problem] = []
        self.files: dict[str, FileRegion] = {}

    def discovery(self) -> Discovery:
        """Return it as a driver's answer."""
        return Discovery(devices=tuple(self.devices), problems=tuple(self.problems))


def look_at(
    hosts: Sequence[HostRoot], environ: Mapping[str, str], tools: Tools, baseline: Baseline, deadline: Deadline
) -> Look:
    """Return all devices of all machines; one that cannot be looked into is a problem and hides no other."""
    look = Look()
    for host in hosts:
        try:
            with HostTree(host.root) as tree:
                if _has_memory(tree.sys):
                    _add_machine(look, tree, host, tools, baseline, deadline)
        except DriverError as error:
            look.problems.append(
                Problem(source=host.node, step="discover", detail=error.message, hint=error.hint or "")
            )
        if host.root is None:
            add_files(look, host, environ)
        elif environ.get(VARIABLE):
            detail = f"{VARIABLE} speaks of the running machine, and {host.root} is a recorded one: not looked at"
            look.problems.append(Problem(source=VARIABLE, step="discover", detail=detail, fatal=False))
    return look


def _has_memory(tree: Tree) -> bool:
    return any(tree.names(bus) for bus in _BUSES) or any(name.startswith("pmem") for name in tree.names("class/block"))


def _add_machine(
    look: Look, tree: HostTree, host: HostRoot, tools: Tools, baseline: Baseline, deadline: Deadline
) -> None:
    scan = Scan(tree, host.node, host.rack, None, deadline)
    regions = find_regions(scan)
    found = find_cxl(scan, regions)
    find_dax(scan, {**regions, **found})
    live = host.root is None
    asked = _tools_for(tree.sys)
    answers: Mapping[str, Answer] = {}
    if live:
        seconds = min(deadline.remaining_seconds * _TOOL_SHARE, _MOST_TOOL_SECONDS)
        answers = tools.listings(asked, Deadline.after(seconds))
        for name, (_, why) in answers.items():
            if why and "installed" not in why:
                hint = f"run {name} list by hand; as root, if it lacks permission"
                look.problems.append(Problem(source=name, step="discover", detail=why, hint=hint, fatal=False))
    look.problems += [msgspec.structs.replace(problem, source=NAME) for problem in scan.problems]
    told = module_facts(answers)
    modules = {
        device.id: _with_module_facts(device, tree.sys, told, answers, baseline)
        for device in scan.devices
        if device.kind is Kind.MEMORY
    }
    taken = _system_memory(tree.sys, answers)
    now = time.time()
    for device in scan.devices:
        if device.kind is Kind.MEMORY:
            module = modules[device.id]
            conditions = merged(judge_module(device.id, device.name, module.attributes, now))
            look.devices.append(msgspec.structs.replace(module, conditions=conditions))
        else:
            look.devices.append(_region(device, modules, tree.sys, taken, live=live, now=now))


def _tools_for(tree: Tree) -> tuple[str, ...]:
    wanted = []
    if tree.names("bus/nd/devices"):
        wanted.append("ndctl")
    if tree.names("bus/dax/devices"):
        wanted.append("daxctl")
    if any(name.startswith("mem") for name in tree.names("bus/cxl/devices")):
        wanted.append("cxl")
    return tuple(wanted)


def _with_module_facts(
    device: Device,
    tree: Tree,
    told: Mapping[str, dict[str, Attribute]],
    answers: Mapping[str, Answer],
    baseline: Baseline,
) -> Device:
    """Return a module with its health: from sysfs where it says, from the tools, or why nobody told."""
    facts = dict(device.attributes)
    nd, cxl = alias(device, "nd"), alias(device, "cxl")
    silent = why_silent(answers, "cxl" if cxl is not None else "ndctl")
    for name in HEALTH_NAMES:
        facts.setdefault(name, silent)
    if nd is not None:
        for bus in ("nfit", "papr"):
            counted = tree.count(f"bus/nd/devices/{nd}/{bus}", "dirty_shutdown")
            if counted.known:
                facts["dirty_shutdown_count"] = counted
    for name, attribute in told.get(nd or cxl or device.name, {}).items():
        mine = facts.get(name)
        if name == "flags" and mine is not None and mine.known:
            words = (*(mine.value if isinstance(mine.value, tuple) else ()), *_words(attribute))
            facts[name] = known(tuple(dict.fromkeys(words)), "sysfs+ndctl")
        elif attribute.known or mine is None or not mine.known:
            facts[name] = attribute
    count = facts["dirty_shutdown_count"].value
    if isinstance(count, int):
        first = baseline.note({device.id: count})[device.id]
        facts["dirty_shutdown_baseline"] = known(first, "hal")
    return msgspec.structs.replace(device, driver=NAME, attributes=facts)


def _words(attribute: Attribute) -> tuple[str, ...]:
    return tuple(str(word) for word in attribute.value) if isinstance(attribute.value, tuple) else ()


def _system_memory(tree: Tree, answers: Mapping[str, Answer]) -> frozenset[str]:
    """Return the DAX devices that the kernel uses as its own memory: nobody can be given those."""
    told = dax_modes(answers)
    names = tree.names("bus/dax/devices")
    by_driver = {name for name in names if tree.link(f"bus/dax/devices/{name}/driver") == "kmem"}
    return frozenset(by_driver | {name for name, mode in told.items() if mode == "system-ram"})


def _bad_blocks(device: Device, tree: Tree) -> Attribute:
    """Return how many sectors are bad: of the region's list, or of its block devices' if those know of more."""
    facts = device.attributes
    own = facts.get("bad_blocks", absent(Absence.NOT_REPORTED, "sysfs:badblocks"))
    counted = 0
    for name in device.aliases:
        text = tree.read(f"class/block/{name.removeprefix('block:')}/badblocks") if name.startswith("block:") else ""
        if isinstance(text, str):
            counted += sum(part.length for part in parse_badblocks(text)) // SECTOR_BYTES
    if counted > (own.value if isinstance(own.value, int) else 0):
        return known(counted, "sysfs:block/badblocks")
    return own


def _region(
    device: Device,
    modules: Mapping[str, Device],
    tree: Tree,
    taken: frozenset[str],
    *,
    live: bool,
    now: float,
) -> Device:
    facts = dict(device.attributes)
    domain = facts.get("persistence_domain")
    if domain is None:
        domain = facts["persistence_domain"] = absent(Absence.NOT_REPORTED, "sysfs:persistence_domain")
    promised = domain.value in ("cpu_cache", "memory_controller")
    facts["persistent"] = known(promised, domain.source)
    facts["bad_blocks"] = _bad_blocks(device, tree)
    facts["line_bytes"] = known(LINE_BYTES, "libpmem")
    facts["granule_bytes"] = known(SECTOR_BYTES, "sysfs:badblocks")
    for name in ("media", "mode", "size_bytes"):
        facts.setdefault(name, absent(Absence.NOT_REPORTED, "sysfs"))
    named = facts.get("dimms")
    ids = named.value if named is not None and isinstance(named.value, tuple) else ()
    own = [modules[str(one)] for one in ids if str(one) in modules]
    for name in ("locked", "encrypted"):
        told = [module.value(name) for module in own if module.value(name) is not None]
        facts[name] = known(any(told), "sysfs:security") if told else absent(Absence.NOT_REPORTED, "sysfs:security")
    mode = facts.get("mode")
    dax = alias(device, "dax") is not None or (mode is not None and mode.value == "devdax")
    facts["persistence"] = _persistence(domain, dax)
    if alias(device, "dax") in taken:
        facts["mode"] = known("system-ram", "sysfs:driver")
    mapped = {module.name: module.attributes for module in own}
    usable = alias(device, "nd") is not None or alias(device, "dax") is not None
    conditions: tuple[Condition, ...] = judge_region(device.id, facts, mapped, now)
    return msgspec.structs.replace(
        device,
        driver=NAME,
        attributes=facts,
        conditions=conditions,
        allocatable=live and usable and facts["size_bytes"].known and facts["mode"].value != "system-ram",
    )


def _persistence(domain: Attribute, dax: bool) -> Attribute:
    """Say how a mapping of the region will be durable, as far as that is known before there is one."""
    if domain.value == "none":
        return known("none", domain.source)
    if dax:
        return known("cpu-flush", "sysfs:bus/dax")
    return absent(Absence.NOT_REPORTED, "libpmem", "known once a namespace is mapped")


def add_files(look: Look, host: HostRoot, environ: Mapping[str, str]) -> None:
    """Add the region files that the environment names."""
    text = environ.get(VARIABLE, "")
    if not text:
        return
    files, problems = find_files(text)
    look.problems += problems
    names = {device.name for device in look.devices}
    for file in files:
        name = file.name
        number = 2
        while name in names:
            name, number = f"{file.name}-{number}", number + 1
        names.add(name)
        try:
            look.devices.append(describe_file(file, name, host))
        except HalError as error:
            look.problems.append(Problem(source=VARIABLE, step="discover", detail=str(error), fatal=False))
            continue
        look.files[file.id] = file


def describe_file(file: FileRegion, name: str, host: HostRoot) -> Device:
    """Return a region file as a device. Raises :mod:`hal.errors` if it cannot be read."""
    label = file.label("discover")
    domain, persistence = file.domain(), file.persistence()
    bad = sum(part.length for part in file.bad_blocks()) // 512
    modes = tuple(dict.fromkeys(str(namespace.mode) for namespace in label.namespaces))
    facts = {
        "media": known("file", "file"),
        "path": known(file.path, VARIABLE),
        "filesystem": known(file.ground.filesystem, "mountinfo")
        if file.ground.filesystem
        else absent(Absence.NOT_REPORTED, "mountinfo"),
        "persistence": known(str(persistence), "mmap"),
        "persistence_domain": known(str(domain), "mmap"),
        "persistent": known(domain != "none", "mmap"),
        "set_cookie": known("0x" + label.cookie, "file"),
        "size_bytes": known(label.size_bytes, "file"),
        "memory_bytes": known(label.size_bytes, "file"),
        "available_bytes": known(label.available_bytes(), "file"),
        "line_bytes": known(LINE_BYTES, "libpmem"),
        "granule_bytes": known(GRANULE_BYTES, "mmap"),
        "read_only": known(not os.access(file.path, os.W_OK), "access"),
        "bad_blocks": known(bad, "sysfs:badblocks" if file.ground.badblocks else "file"),
        "mode": known(modes[0] if len(modes) == 1 else modes, "file")
        if modes
        else absent(Absence.NOT_REPORTED, "file", "no namespace yet"),
        "numa_node": absent(Absence.UNSUPPORTED, "file", "a file is on no NUMA node"),
    }
    return Device(
        id=file.id,
        kind=Kind.PMEM,
        name=name,
        driver=NAME,
        location=Location(node=host.node, rack=host.rack),
        aliases=(f"file:{file.path}",),
        attributes=facts,
        capacity={"memory_bytes": label.size_bytes},
        conditions=judge_region(file.id, facts, {}, time.time()),
        allocatable=True,
    )
