"""``hal-probe doctor``: per kind, what is there, why something is not, and the command that mends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hal.agent.report import SYSFS, DriverReport
from hal.cli.probe import say_lines, say_report, timed
from hal.cli.probe_look import Look, distinct, suggestions
from hal.cli.probe_options import Options
from hal.cli.probe_reports import Diagnosis, DoctorReport, KindDiagnosis
from hal.cli.render.text import Style, clean, fold, terminal_columns
from hal.drivers.contract import Cause
from hal.model.attributes import Absence
from hal.model.device import Device
from hal.model.health import Action, Health, Presence, Status
from hal.model.kind import ACCELERATORS, Kind

OK, INFO, TROUBLE = "ok", "info", "trouble"
_INDENT = 8

_NOT_THERE = {
    Kind.GPU: ("no PCI function is a GPU or accelerator (classes 0300, 0302, 0380, 1200)", "lspci -nn -d ::0302"),
    Kind.DPU: ("no BlueField function on PCI, no card behind class/rshim", "lspci -nn -d 15b3:"),
    Kind.RNIC: (
        "class/infiniband is empty: no RDMA NIC, or its RDMA kernel module is not loaded",
        "modprobe mlx5_ib; for a soft one: rdma link add rxe0 type rxe netdev NETDEV",
    ),
    Kind.PMEM: (
        "bus/nd has no regions: no persistent memory, or it is not enabled in the firmware",
        "modprobe -a nfit nd_pmem cxl_pmem; ndctl list -R",
    ),
    Kind.UPMEM: (
        "class/dpu_rank is empty: no UPMEM DIMMs, or UPMEM's kernel module is not loaded",
        "modprobe dpu_rank; dpu-diag",
    ),
}
_MODULES = {
    (Kind.GPU, "10de"): "nvidia",
    (Kind.GPU, "1002"): "amdgpu",
    (Kind.GPU, "8086"): "xe",
    (Kind.RNIC, "15b3"): "mlx5_core",
    (Kind.DPU, "15b3"): "mlx5_core",
    (Kind.NIC, "15b3"): "mlx5_core",
    (Kind.NVME, ""): "nvme",
    (Kind.PMEM, ""): "nd_pmem",
    (Kind.UPMEM, ""): "dpu_rank",
}
_CAUSES = {
    Cause.NO_BINDING: "its Python binding is not installed",
    Cause.NO_LIBRARY: "the vendor's library is not found",
    Cause.NO_DRIVER: "the kernel module is not loaded",
    Cause.NO_PERMISSION: "it may not be used by this user",
    Cause.NO_HARDWARE: "its hardware is not here",
    Cause.VERSION_MISMATCH: "the versions of library and kernel module do not fit",
    Cause.BROKEN: "it is broken",
    Cause.TIMEOUT: "it did not answer in time",
}
_MENDS = {
    Action.RESTART_APP: "restart the application that uses {name}",
    Action.RESET: "drain {name}, then reset it",
    Action.DRAIN_RESET: "drain {name} and its neighbours, then reset them",
    Action.REBOOT: "drain {node} and reboot it",
    Action.POWER_CYCLE: "drain {node} and power-cycle it",
    Action.REPLACE: "take {name} out of service and replace it",
}

_MENDS_BY_TYPE = {
    "LinkDown": "check the cable and the port at its far end; ip link; rdma link",
    "PortDown": "check the cable and the port at its far end; ip link; rdma link",
    "LinkNarrow": "reseat {name} and its riser; lspci -vv -s {pci}",
    "PciError": "reseat {name} and its riser if it goes on; dmesg | grep -i aer; lspci -vv -s {pci}",
    "LinkSlow": "put load on {name} and look again (an idle link may slow down); lspci -vv -s {pci}",
}


def doctor(options: Options) -> int:
    """Say it for the five kinds, or for those of ``--kind``; the exit status is that of ``list``."""
    seen = timed(options)
    kinds = [kind for kind in Kind if (kind in ACCELERATORS if options.kinds is None else kind in options.kinds)]
    report = DoctorReport(
        taken_at=seen.taken_at,
        exit_code=seen.exit_code,
        problems=seen.survey.problems,
        kinds=tuple(diagnose(kind, seen) for kind in kinds),
        plugins=tuple(_plugins(seen)),
        drivers=seen.survey.reports,
    )
    if options.format == "table":
        say_lines(lines_of(report, terminal_columns(), Style(options.color)))
    else:
        say_report(report, options)
    return seen.exit_code


def diagnose(kind: Kind, seen: Look) -> KindDiagnosis:
    """Return what is to be said about one kind."""
    devices = [device for device in seen.devices if device.kind is kind]
    drivers = [report for report in seen.survey.reports if kind in report.kinds and report.driver != SYSFS]
    found = [*_counts(kind, devices), *_undriven(kind, seen), *_unbound(kind, devices)]
    found += [*_unready(drivers, devices), *_unreadable(devices), *_ill(devices)]
    found += [
        Diagnosis(level=TROUBLE, text=f"--expect: {one.expected} expected, {one.found} found")
        for one in seen.expectations
        if one.kind is kind and not one.met
    ]
    healthy = sum(device.health is Health.HEALTHY for device in devices)
    return KindDiagnosis(kind=kind, found=len(devices), healthy=healthy, diagnoses=tuple(found))


def _counts(kind: Kind, devices: Sequence[Device]) -> Iterator[Diagnosis]:
    if not devices:
        text, remedy = _NOT_THERE.get(kind, ("the kernel lists none", ""))
        yield Diagnosis(level=INFO, text=text, remedy=remedy)
        return
    drivers = sorted({device.driver for device in devices})
    yield Diagnosis(level=OK, text=f"{len(devices)} found by {', '.join(drivers)}")


def _undriven(kind: Kind, seen: Look) -> Iterator[Diagnosis]:
    for one in distinct(suggestions(seen.survey)):
        if one.kind is kind:
            yield Diagnosis(level=TROUBLE, text=one.text, remedy=one.remedy, device=one.device)


def _unbound(kind: Kind, devices: Sequence[Device]) -> Iterator[Diagnosis]:
    for device in devices:
        if device.why_absent("pci_driver") is not Absence.DRIVER_NOT_BOUND:
            continue
        vendor = str(device.value("pci_vendor") or "")
        module = _MODULES.get((kind, vendor)) or _MODULES.get((kind, ""))
        yield Diagnosis(
            level=TROUBLE,
            text=f"{device.name}: no kernel driver is bound to it",
            remedy=f"modprobe {module}" if module else f"lspci -k -s {device.location.pci_address}",
            device=device.id,
        )


def _unready(drivers: Sequence[DriverReport], devices: Sequence[Device]) -> Iterator[Diagnosis]:
    for report in drivers:
        readiness = report.readiness
        if readiness.ready:
            continue
        level = INFO if readiness.cause is Cause.NO_HARDWARE else TROUBLE
        driven = any(device.driver != SYSFS for device in devices)
        if level == INFO and devices and (driven or not readiness.remedy):
            continue  # another driver found what there is, or this one was not asked
        said = f"driver {report.driver} of {report.plugin}: {_CAUSES.get(readiness.cause, readiness.cause.value)}"
        yield Diagnosis(
            level=level,
            text=f"{said} ({readiness.detail})" if readiness.detail else said,
            remedy=readiness.remedy,
        )


def _unreadable(devices: Sequence[Device]) -> Iterator[Diagnosis]:
    names: dict[str, list[str]] = {}
    for device in devices:
        for name, attribute in device.attributes.items():
            if attribute.absent is Absence.PERMISSION:
                names.setdefault(name, []).append(device.name)
    for name, where in names.items():
        text = f"{name} of {_listed(where)} may not be read by this user"
        yield Diagnosis(level=INFO, text=text, remedy="sudo hal-probe")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]} and {len(names) - 2} others"


def _ill(devices: Sequence[Device]) -> Iterator[Diagnosis]:
    for device in devices:
        if device.health is Health.HEALTHY:
            continue
        holding = [condition for condition in device.conditions if condition.status is not Status.FALSE]
        for condition in holding:
            code = "" if condition.code is None else f" {condition.code}"
            mend = _MENDS.get(condition.action) or _MENDS_BY_TYPE.get(condition.type, "")
            place = device.location
            yield Diagnosis(
                level=TROUBLE,
                text=f"{device.name} is {device.health}: {condition.type}{code}, {condition.evidence}",
                remedy=mend.format(name=device.name, node=place.node, pci=place.pci_address),
                device=device.id,
            )
        if not holding:
            what = "is missing" if device.presence is Presence.MISSING else "does not answer"
            yield Diagnosis(
                level=TROUBLE, text=f"{device.name} {what}", remedy="dmesg | tail; then reset it", device=device.id
            )


def _plugins(seen: Look) -> Iterator[Diagnosis]:
    for problem in seen.survey.problems:
        yield Diagnosis(
            level=TROUBLE if problem.fatal else INFO,
            text=f"{problem.source}, during {problem.step}: {problem.detail}",
            remedy=problem.hint,
        )


def lines_of(report: DoctorReport, columns: int | None, style: Style) -> list[str]:
    """Return the report for people. Texts go on in the next line where one is full; commands stay whole, to copy."""
    lines: list[str] = []
    for kind in report.kinds:
        count = f"{kind.found} found, {kind.healthy} healthy" if kind.found else "none found"
        lines += [*_block(f"{kind.kind.value}: {count}", kind.diagnoses, columns, style), ""]
    if report.plugins:
        lines += [*_block("plugins and drivers", report.plugins, columns, style), ""]
    trouble = sum(one.level == TROUBLE for kind in report.kinds for one in kind.diagnoses)
    trouble += sum(one.level == TROUBLE for one in report.plugins)
    lines.append(f"{trouble} things to mend" if trouble != 1 else "1 thing to mend")
    return lines


def _block(title: str, diagnoses: Sequence[Diagnosis], columns: int | None, style: Style) -> list[str]:
    marks = {OK: style.paint("ok  ", "32"), INFO: style.dim("note"), TROUBLE: style.paint("!!  ", "31")}
    lines = [style.bold(title)]
    for one in diagnoses:
        first, *rest = fold(clean(one.text), None if columns is None else columns - _INDENT)
        lines += [f"  {marks[one.level]}  {first}", *(" " * _INDENT + line for line in rest)]
        if one.remedy:
            lines.append(f"{' ' * _INDENT}try: {clean(one.remedy)}")
    return lines
