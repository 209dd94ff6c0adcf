"""Selectors as Kubernetes' users write them, on devices of a mock machine and on devices made by hand."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from hal.errors import SelectorError
from hal.model.attributes import Absence, Value, absent, known
from hal.model.cel import compile_cel
from hal.model.cel_device import domain_of, variables
from hal.model.device import Device, Location
from hal.model.kind import Kind


def made(driver: str, kind: Kind = Kind.GPU, capacity: dict[str, int] | None = None, **facts: Value) -> Device:
    """Return a device with these attributes."""
    return Device(
        id=f"{driver}-0",
        kind=kind,
        name=f"{kind.value}0",
        driver=driver,
        location=Location(node="n0", numa_node=1, pci_address="0000:18:00.0", pci_path=("pci0000:15", "0000:15:01.0")),
        attributes={name: known(value, "test") for name, value in facts.items()},
        capacity=capacity or {},
        allocatable=True,
    )


GPU = made(
    "nvidia",
    capacity={"memory_bytes": 80 * 2**30},
    vendor="NVIDIA",
    model="NVIDIA H100 80GB HBM3",
    uuid="GPU-aaaa",
    architecture="Hopper",
    compute_capability="9.0",
    driver_version="550.54.15",
    multiprocessors=132,
    ecc=True,
    rate=2.5,
    modes=("a", "b"),
)
MIG = msgspec.structs.replace(
    made("nvidia", model="NVIDIA H100 80GB HBM3 MIG 1g.10gb", mig_profile="1g.10gb", uuid="MIG-1"), parent="GPU-aaaa"
)
NIC = msgspec.structs.replace(
    made("rdma", Kind.RNIC, rate_gbps=400.0, netdev="eth0"), aliases=("rdma:mlx5_0", "netdev:eth0")
)
AMD = made("amd", model="AMD Instinct MI300X", capacity={"memory_bytes": 192 * 2**30})
NV, CAP = 'device.attributes["gpu.nvidia.com"]', 'device.capacity["gpu.nvidia.com"]'


@pytest.mark.parametrize(
    ("expression", "device"),
    [
        # The classes that drivers bring with them, and claims as their manuals write them.
        ('device.driver == "gpu.nvidia.com"', GPU),
        ("device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == 'gpu'", GPU),
        ("device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == 'mig'", MIG),
        (f'{NV}.type == "mig" && {NV}.profile == "1g.10gb" && {NV}.parentUUID == "GPU-aaaa"', MIG),
        (f'{NV}.productName.startsWith("NVIDIA H100") && {NV}.uuid in ["GPU-aaaa", "GPU-bbbb"]', GPU),
        (f'{NV}.productName == "NVIDIA H100 80GB HBM3"', MIG),
        (f'{CAP}.memory.compareTo(quantity("40Gi")) >= 0', GPU),
        (f'{CAP}.memory == quantity("80Gi") && {CAP}.memory.isLessThan(quantity("1e11"))', GPU),
        (f'{NV}.cudaComputeCapability.compareTo(semver("9.0.0")) >= 0', GPU),
        (f'{NV}.driverVersion.isGreaterThan(semver("550.0.0"))', GPU),
        (f'{NV}.productName.lowerAscii().matches("^.*h100.*$") && !({NV}.architecture == "Ampere")', GPU),
        ('device.attributes["resource.kubernetes.io"].pciBusID == "0000:18:00.0"', GPU),
        ('device.attributes["resource.kubernetes.io"]["pcieRoot"] == "pci0000:15"', NIC),
        ('cel.bind(dra, device.attributes["gpu.nvidia.com"], dra.type == "gpu" && dra.architecture == "Hopper")', GPU),
        (f'{NV}.?profile.orValue("none") == "none" && device.attributes[?"x"].?y.orValue(1) == 1', GPU),
        (f'has({NV}.brand) ? {NV}.brand == "Tesla" : {NV}.architecture == "Hopper"', GPU),
        ('device.driver == "gpu.nvidia.com" && "gpu.nvidia.com" in device.attributes && "type" in ' + NV, GPU),
        ("device.allowMultipleAllocations", GPU),
        ('device.driver == "dra.net" && device.attributes["dra.net"].rdma == true', NIC),
        ('device.attributes["dra.net"].rdma', NIC),
        ('device.attributes["dra.net"].ifName == "eth0"', NIC),
        ('device.attributes["dra.net"]["rdmaDevice"] == "mlx5_0"', NIC),
        ('device.attributes["dra.net"].numaNode == 1 || device.attributes["dra.net"].numaNode == 0', NIC),
        ('device.attributes["gpu.amd.com"].type == "amdgpu" && device.capacity["gpu.amd.com"].memory.sign() == 1', AMD),
        # Ours, under the driver's domain and under one for all.
        (f'{NV}.model == {NV}.productName && {CAP}.memory_bytes == {CAP}["memory"]', GPU),
        ('device.attributes["hal"].kind == "gpu" && device.attributes["hal"].numa_node == 1', AMD),
        ('device.capacity["hal"].memory_bytes.isGreaterThan(quantity("100G"))', AMD),
        (f'{NV}.modes.exists(m, m == "b") && {NV}.modes.includes("a") && {NV}.ecc && {NV}.rate > 2.0', GPU),
        # An error beside something that decides is no error.
        (f'{NV}.nothing == 1 || {NV}.type == "gpu"', GPU),
        ('device.attributes["gpu.amd.com"].type != "x" || true', GPU),
    ],
)
def test_a_selector_from_kubernetes_matches_the_device_it_means(expression: str, device: Device) -> None:
    selector = compile_cel(expression)
    assert selector.why(device) is None
    assert selector.matches(device)


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ('device.driver == "gpu.amd.com"', 'device.driver == "gpu.amd.com" is false'),
        ('device.attributes["gpu.intel.com"].family == "x"', "no attribute 'family' in 'gpu.intel.com'"),
        (f'{CAP}.frames.sign() > 0 && {NV}.type == "gpu"', "no capacity 'frames'"),
        (f"{NV}.type > 3", "no such overload: >(string, int)"),
        (f"{NV}.type", "is string, not bool"),
        (f'{NV}.type == "mig" && {NV}.profile == "1g.10gb"', 'type == "mig" is false'),
        (f'"profile" in {NV}', "is false"),
        ('"gpu.intel.com" in device.attributes', "is false"),
        (f'{NV}.productName.compareTo(semver("1.0.0")) > 0', "no such overload: compareTo(string, semver)"),
        (f"{NV}.modes[7] == 'a'", "no such index: 7"),
        ("9223372036854775807 + 1 > 0", "overflows"),
        ("1 / 0 == 1", "division by zero"),
    ],
)
def test_a_device_that_does_not_match_is_told_why_and_harms_nobody(expression: str, why: str) -> None:
    selector = compile_cel(expression)
    assert not selector.matches(GPU)
    assert why in str(selector.why(GPU))


@pytest.mark.parametrize(
    ("expression", "message", "position"),
    [
        ("?!", "syntax", 1),
        ("", "empty", None),
        ("device.driver ==", "syntax", 17),
        ('device.driver == "gpu', "no end", 18),
        ("1", "must be bool", 1),
        ("device.driver == 7", "string == int is never true", 1),
        (f"true && {CAP}.memory >= 10", "quantity >= int", 9),
        (f'{CAP}.memory >= quantity("10Gi")', "quantity has no >=", 1),
        (f'{CAP}.memory.compareTo(quantity("10GB")) >= 0', "is no quantity", 52),
        (f'{NV}.v.compareTo(semver("9.0")) >= 0', "is no semantic version", 49),
        ("devise.driver == 'x'", "undeclared reference to 'devise'", 1),
        ("device.drivers == 'x'", "no field 'drivers'", 1),
        ('device.driver.startWith("gpu")', "no function 'startWith'", 1),
        ('device.driver.startsWith("a", "b")', "takes 1 arguments, not 2", 1),
        ('device.driver.matches("(")', "no regular expression", 1),
        ("timestamp('2020-01-01T00:00:00Z') == 1", "no function 'timestamp'", 1),
        ("[1].all(x, 1)", "must be bool", 12),
        ("device.driver && true", "must be bool", 1),
        ("has(device)", "has() takes a field", 1),
        ("9223372036854775808 == 1", "64 bits", 1),
    ],
)
def test_a_mistake_of_the_writer_is_refused_with_its_position(
    expression: str, message: str, position: int | None
) -> None:
    with pytest.raises(SelectorError) as refused:
        compile_cel(expression)
    assert message in str(refused.value)
    if position is not None:
        assert f"at position {position} of" in str(refused.value)


def test_a_hint_says_how_quantities_are_compared_and_what_was_meant() -> None:
    with pytest.raises(SelectorError, match="compareTo"):
        compile_cel(f'{CAP}.memory >= quantity("10Gi")')
    with pytest.raises(SelectorError, match=r"try: startsWith\?"):
        compile_cel('device.driver.startWith("gpu")')


def test_an_absent_attribute_is_no_value_and_neither_is_one_of_another_driver() -> None:
    gone = msgspec.structs.replace(GPU, attributes={"uuid": absent(Absence.TIMEOUT, "nvml")})
    assert not compile_cel(f"has({NV}.uuid)").matches(gone)
    assert not compile_cel(f"has({NV}.type)").matches(AMD)
    assert "no attribute 'uuid'" in str(compile_cel(f'{NV}.uuid == ""').why(gone))


def test_every_driver_has_a_domain_and_a_name_as_dra_knows_it() -> None:
    assert [domain_of(device) for device in (GPU, AMD, NIC)] == ["gpu.nvidia.com", "gpu.amd.com", "dra.net"]
    assert domain_of(made("mock-gpu", vendor="NVIDIA")) == "gpu.nvidia.com"
    assert domain_of(made("mock-gpu", vendor="AMD")) == "gpu.amd.com"
    assert domain_of(made("pmem", Kind.PMEM)) == "pmem.hal"
    seen = variables(made("upmem", Kind.UPMEM, capacity={"dpus": 64}))
    assert seen["driver"] == "upmem.hal"
    assert set(seen["attributes"]) == {"upmem.hal", "hal", "resource.kubernetes.io"}  # type: ignore[call-overload]


def test_one_variable_read_alone_is_the_one_in_the_whole() -> None:
    for device in (GPU, MIG, NIC, AMD, made("pmem", Kind.PMEM, capacity={"size_bytes": 7})):
        for section in ("attributes", "capacity"):
            whole = variables(device)[section]
            for domain, members in whole.items():  # type: ignore[attr-defined]
                for name, value in members.items():
                    path = f"device.{section}[{domain!r}][{name!r}]"
                    bound = f"cel.bind(s, device.{section}, s[{domain!r}][{name!r}] == {path})"
                    assert compile_cel(bound).why(device) is None, (path, value)


def test_it_is_evaluated_once_for_each_distinct_set_of_the_values_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    selector = compile_cel(f'{NV}.architecture == "Hopper" && {CAP}.memory.sign() == 1 && device.driver != "counted"')
    assert selector.names == (
        "device.attributes.gpu.nvidia.com.architecture",
        "device.capacity.gpu.nvidia.com.memory",
        "device.driver",
    )
    evaluated: list[object] = []
    evaluate = type(selector)._evaluate
    monkeypatch.setattr(
        type(selector), "_evaluate", lambda self, values: (evaluated.append(values), evaluate(self, values))[1]
    )
    for number in range(1000):
        twin = msgspec.structs.replace(
            GPU, id=f"GPU-{number}", attributes={**GPU.attributes, "uuid": known(f"GPU-{number}", "test")}
        )
        assert selector.matches(twin)
    assert len(evaluated) == 1


def test_what_is_remembered_keeps_types_apart() -> None:
    selector = compile_cel(f"{NV}.flag == 1")
    answers = [selector.matches(made("nvidia", flag=flag)) for flag in (1, True, 1.0, "1")]
    assert answers == [True, False, True, False]


def test_what_is_remembered_is_bounded() -> None:
    selector = compile_cel(f"{NV}.serial >= 0")
    for serial in range(10_000):
        assert selector.matches(made("nvidia", serial=serial))
    assert len(selector._seen) <= 4096


def test_a_program_that_never_sees_cel_does_not_pay_for_it() -> None:
    code = (
        "import sys, hal.model.cel, hal.model.claim; print([m for m in ('celpy', 'lark', 're2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
