"""NVIDIA's bindings, nvitop, gpustat and our own plugin see one set of GPUs, and lose the same one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hal_mocks.faults import FaultType
from mocks.tests.rooms import rooms

BIN = Path(sys.executable).parent
NVITOP = """
import json, nvitop
told = lambda value: None if value == nvitop.NA else value
print(json.dumps([
    {"index": one.index, "uuid": told(one.uuid()), "name": str(one.name()), "memory": told(one.memory_total()),
     "celsius": told(one.temperature()), "pci": str(told(one.bus_id()))}
    for one in nvitop.Device.all()
]))
"""
MIB = 1 << 20


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    with rooms(tmp_path_factory.mktemp("gpus")) as make:
        made = make("dgx-h100")
        assert made.namespace.stage.lacks == (), "a C compiler is needed: apt install gcc libc6-dev"
        yield made


def probed(room) -> list[dict]:
    done = room.namespace.run_command([BIN / "hal-probe", "--format", "json", "--all", "--kind", "gpu"])
    assert done.returncode in (0, 1), done.stderr
    return sorted(json.loads(done.stdout)["devices"], key=lambda device: device["name"])


def statted(room) -> list[dict]:
    return json.loads(room.output(BIN / "gpustat", "--json"))["gpus"]


def topped(room) -> list[dict]:
    return json.loads(room.output(sys.executable, "-c", NVITOP))


def test_eight_gpus_with_the_same_numbers_in_four_programs(room):
    graph = room.machine.graph.hosts[0].gpus
    ours, stat, top = probed(room), statted(room), topped(room)
    assert {device["driver"] for device in ours} == {"nvidia"}
    assert len(graph) == len(ours) == len(stat) == len(top) == 8
    for gpu, own, one, other in zip(graph, ours, stat, top, strict=True):
        attributes = {name: attribute.get("value") for name, attribute in own["attributes"].items()}
        assert own["id"] == attributes["uuid"] == one["uuid"] == other["uuid"] == gpu.uuid
        assert attributes["model"] == one["name"] == other["name"] == gpu.model
        assert attributes["memory_bytes"] == other["memory"] == gpu.memory_bytes
        assert one["memory.total"] == gpu.memory_bytes // MIB
        assert one["temperature.gpu"] == other["celsius"]
        assert own["location"]["pci_address"] == other["pci"].lower()[4:] == gpu.pci
        assert own["location"]["numa_node"] == room.machine.graph.hosts[0].function(gpu.pci).numa_node


def test_they_lose_the_same_one_keep_the_others_and_find_it_again(room):
    gone = room.machine.graph.hosts[0].gpus[3]
    before = [device["id"] for device in probed(room)]
    room.machine.inject("gpu3", FaultType.LOST)
    ours, stat, top = probed(room), statted(room), topped(room)
    assert [device["id"] for device in ours if device.get("presence") == "ghost"] == [gone.uuid]
    (lost,) = (device for device in ours if device["id"] == gone.uuid)
    assert "DeviceLost" in {condition["type"] for condition in lost["conditions"]}
    assert [one["index"] for one in stat if "lost" in one["name"].lower()] == [3]
    assert [one["index"] for one in top if one["uuid"] is None] == [3]
    rest = [uuid for uuid in before if uuid != gone.uuid]
    assert [device["id"] for device in ours if "presence" not in device] == rest
    assert [one["uuid"] for one in stat if "lost" not in one["name"].lower()] == rest
    assert [one["uuid"] for one in top if one["uuid"] is not None] == rest
    assert "GPU is Lost" in room.output(BIN / "nvitop", "-1") or "N/A" in room.output(BIN / "nvitop", "-1")
    room.machine.heal()
    assert [device["id"] for device in probed(room) if "presence" not in device] == before
    assert [one["uuid"] for one in statted(room)] == [one["uuid"] for one in topped(room)] == before


def test_a_program_that_runs_on_sees_the_loss_and_the_return(room):
    script = (
        "import pynvml, sys\n"
        "pynvml.nvmlInit()\n"
        "handle = pynvml.nvmlDeviceGetHandleByIndex(3)\n"
        "for line in sys.stdin:\n"
        "    try:\n"
        "        print(pynvml.nvmlDeviceGetUUID(handle), flush=True)\n"
        "    except pynvml.NVMLError as error:\n"
        "        print(error, flush=True)\n"
    )
    with room.namespace.popen(
        [sys.executable, "-W", "ignore", "-c", script], stdin=-1, stdout=-1, text=True
    ) as program:

        def ask() -> str:
            program.stdin.write("\n")
            program.stdin.flush()
            return program.stdout.readline().strip()

        assert ask() == room.machine.graph.hosts[0].gpus[3].uuid
        room.machine.inject("gpu3", FaultType.LOST)
        assert ask() == "GPU is lost"
        room.machine.heal()
        assert ask() == room.machine.graph.hosts[0].gpus[3].uuid
        program.communicate(timeout=30)


def test_a_function_in_the_namespace_finds_the_library_too(room):
    def count() -> int:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetCount()

    assert room.namespace.run(count) == 8
