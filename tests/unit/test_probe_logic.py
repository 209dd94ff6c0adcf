"""What hal-probe decides without looking at hardware: options, exit status, reports, diagnoses, events."""

from __future__ import annotations

import msgspec
import pytest

from hal.agent.report import DriverReport
from hal.agent.survey import Survey
from hal.cli.probe_doctor import diagnose, lines_of
from hal.cli.probe_document import InventoryReport, encode, nodes_of, record
from hal.cli.probe_look import Look, exit_code, expect
from hal.cli.probe_options import Options, parse
from hal.cli.probe_reports import AnyReport, DoctorReport
from hal.cli.probe_watch import events
from hal.cli.render.text import Style, width
from hal.drivers.contract import Cause, Problem, Readiness
from hal.errors import UsageError
from hal.model.attributes import Absence, absent
from hal.model.device import Device
from hal.model.health import Action, Presence, Severity
from hal.model.inventory import Inventory
from hal.model.kind import Kind
from tests.golden.machines import degraded, device, gpu_server


def look(
    devices: tuple[Device, ...], reports: tuple[DriverReport, ...] = (), problems: tuple[Problem, ...] = ()
) -> Look:
    inventory = Inventory(devices)
    return Look(
        survey=Survey(inventory, reports, problems, {}, (), ()),
        devices=inventory.devices,
        expectations=(),
        taken_at=0.0,
        exit_code=0,
    )


def test_without_arguments_it_lists_as_a_table():
    assert parse([]) == Options()
    assert parse(["--format", "json"]) == parse(["list", "--format=json", "--timeout", "2"]) == parse(["--json"])


def test_options_may_stand_anywhere():
    asked = parse(["--kind", "gpu,rnic", "diff", "--where", "numa_node == 0", "a", "--json", "b"])
    assert (asked.verb, asked.operands, asked.format) == ("diff", ("a", "b"), "json")
    assert asked.kinds == {Kind.GPU, Kind.RNIC}
    assert asked.where == "numa_node == 0"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["frobnicate"], "no verb"),
        (["--kind", "gpus"], "no kind"),
        (["--kind", ""], "no kind"),
        (["--expect", "gpu"], "KIND=N"),
        (["--expect", "gpu=-1"], "KIND=N"),
        (["--expect", "toaster=1"], "no kind"),
        (["--where", "numa =="], "numa =="),
        (["diff", "one"], "diff takes OLD NEW"),
        (["list", "file"], "list takes no files"),
        (["--svg", "x.svg"], "--svg belongs to topology"),
        (["--for", "3"], "--for belongs to watch"),
        (["watch", "--format", "prometheus"], "no format"),
        (["--timeout", "0"], "no sense"),
        (["--timeout", "soon"], "invalid float"),
        (["--timeout", "nan"], "no sense"),
        (["--no-such-option"], "unrecognized"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_hint(arguments: list[str], complaint: str):
    with pytest.raises(UsageError) as refused:
        parse(arguments)
    assert complaint in str(refused.value)
    assert refused.value.hint


def test_the_exit_status_is_the_highest_that_applies():
    well, ill = (device(Kind.GPU, "gpu0"),), (device(Kind.GPU, "gpu0", conditions=(degraded("x"),)),)
    missing = (expect(well, Kind.GPU, 2),)
    assert exit_code(well, (), False) == 0
    assert exit_code(ill, (), False) == 1
    assert exit_code(ill, missing, False) == 2
    assert exit_code(ill, missing, True) == 3
    assert exit_code((), (), False) == 0


def test_a_device_that_does_not_answer_is_not_healthy():
    assert exit_code((device(Kind.GPU, "gpu0", presence=Presence.GHOST),), (), False) == 1


def test_expectations_count_whole_devices_that_are_there():
    machine = (
        device(Kind.GPU, "gpu0", id="G0"),
        device(Kind.GPU, "gpu1", id="G1", presence=Presence.MISSING),
        device(Kind.GPU, "gpu2", id="G2", presence=Presence.GHOST),
        device(Kind.GPU, "gpu0-mig0", id="M0", parent="G0"),
        device(Kind.RNIC, "mlx5_0", id="N0", parent="D0"),
    )
    assert expect(machine, Kind.GPU, 2).met
    assert (expect(machine, Kind.GPU, 3).found, expect(machine, Kind.GPU, 3).met) == (2, False)
    assert expect(machine, Kind.RNIC, 1).met


def test_a_report_is_valid_json_whatever_the_hardware_said():
    odd = b"caf\xe9\x00\x1b".decode("utf-8", "surrogateescape")
    machine = (device(Kind.GPU, odd, facts={"model": odd, "firmware": float("nan")}),)
    report = InventoryReport(taken_at=1.0, exit_code=0, nodes=nodes_of(machine), devices=tuple(map(record, machine)))
    again = msgspec.json.decode(encode(report))
    assert again["devices"][0]["name"] == "caf\\xe9\x00\x1b"
    assert again["devices"][0]["health"] == "healthy"


def test_reports_come_back_as_what_they_were():
    machine = gpu_server(sick=True)
    report = InventoryReport(taken_at=1.0, exit_code=1, nodes=nodes_of(machine), devices=tuple(map(record, machine)))
    assert msgspec.json.decode(encode(report), type=AnyReport) == report


def said(kind: Kind, seen: Look) -> list[tuple[str, str]]:
    return [(one.text, one.remedy) for one in diagnose(kind, seen).diagnoses]


def test_doctor_says_what_was_looked_for_when_a_kind_is_absent():
    for kind in (Kind.GPU, Kind.DPU, Kind.RNIC, Kind.PMEM, Kind.UPMEM):
        ((text, remedy),) = said(kind, look(()))
        assert text
        assert remedy


def test_doctor_names_the_cause_and_the_command_for_a_driver_that_is_not_ready():
    readiness = Readiness(cause=Cause.NO_LIBRARY, detail="libnvidia-ml.so.1", remedy="apt install libnvidia-ml1")
    report = DriverReport(driver="nvml", plugin="nvidia", kinds=(Kind.GPU,), readiness=readiness)
    assert said(Kind.GPU, look((), (report,)))[-1] == (
        "driver nvml of nvidia: the vendor's library is not found (libnvidia-ml.so.1)",
        "apt install libnvidia-ml1",
    )


def test_doctor_names_the_module_of_a_device_without_kernel_driver():
    gpu = device(Kind.GPU, "gpu0", facts={"pci_vendor": "10de"})
    gpu = msgspec.structs.replace(
        gpu, attributes={**gpu.attributes, "pci_driver": absent(Absence.DRIVER_NOT_BOUND, "sysfs:driver")}
    )
    assert ("gpu0: no kernel driver is bound to it", "modprobe nvidia") in said(Kind.GPU, look((gpu,)))


def test_doctor_says_what_may_not_be_read():
    rank = device(Kind.UPMEM, "dpu_rank0")
    rank = msgspec.structs.replace(rank, attributes={"mode": absent(Absence.PERMISSION, "sysfs:mode")})
    assert ("mode of dpu_rank0 may not be read by this user", "sudo hal-probe") in said(Kind.UPMEM, look((rank,)))


def test_doctor_says_what_mends_an_ill_device():
    lost = msgspec.structs.replace(
        degraded("G", "FallenOffBus", Severity.FATAL), action=Action.REBOOT, code=79, evidence="reads all ones"
    )
    gpu = device(Kind.GPU, "gpu0", id="G", conditions=(lost,))
    assert said(Kind.GPU, look((gpu,)))[-1] == (
        "gpu0 is failed: FallenOffBus 79, reads all ones",
        "drain n1 and reboot it",
    )


def test_watch_tells_conditions_from_other_changes_and_a_device_from_its_absence():
    before = (
        device(Kind.GPU, "gpu0", id="G0", facts={"link_width": 16}),
        device(Kind.GPU, "gpu1", id="G1"),
    )
    after = (
        device(Kind.GPU, "gpu0", id="G0", facts={"link_width": 8}, conditions=(degraded("G0"),)),
        device(Kind.GPU, "gpu2", id="G2"),
    )
    trouble = Problem(source="nvidia", step="discover", detail="did not answer")
    told = [(event.type, event.device) for event in events(look(before), look(after, problems=(trouble,)), Options())]
    assert told == [("removed", "G1"), ("condition", "G0"), ("changed", "G0"), ("added", "G2"), ("problem", None)]
    assert list(events(look(after), look(after), Options())) == []


def test_evidence_seen_again_is_no_event():
    first = device(Kind.GPU, "gpu0", id="G", conditions=(degraded("G"),))
    again = msgspec.structs.replace(
        first, conditions=(msgspec.structs.replace(degraded("G"), last_seen_at=9.0, count=2),)
    )
    assert list(events(look((first,)), look((again,)), Options())) == []


def test_doctor_never_shortens_what_mends_something():
    report = DoctorReport(
        taken_at=1.0, exit_code=0, kinds=(diagnose(Kind.RNIC, look(())), diagnose(Kind.PMEM, look(())))
    )
    lines = lines_of(report, 40, Style("never"))
    assert all(width(line) <= 40 for line in lines if "try: " not in line)
    told = [one for kind in report.kinds for one in kind.diagnoses]
    assert [line.split("try: ")[1] for line in lines if "try: " in line] == [one.remedy for one in told]
    for one in told:
        assert one.text in " ".join(" ".join(lines).split())
