"""CPUs and memory near devices, on trees that are written down, and on this machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hal.agent.bind import Binding, Memory, allowed_nodes, choose, numa_node
from hal.agent.launch import Orders
from hal.model.kind import Kind
from hal.model.lease import AllocatedDevice


@pytest.fixture
def tree(tmp_path):
    """Two sockets of four CPUs with two threads each, a node of memory alone, and devices of all sorts."""
    sys_ = tmp_path / "sys"

    def write(path, text):
        (sys_ / path).parent.mkdir(parents=True, exist_ok=True)
        (sys_ / path).write_text(text + "\n")

    write("devices/system/node/node0/cpulist", "0-3,8-11")
    write("devices/system/node/node1/cpulist", "4-7,12-15")
    write("devices/system/node/node2/cpulist", "")
    write("devices/pci0000:00/numa_node", "1")
    for address, node in (("0000:01:00.0", "0"), ("0000:02:00.0", "1"), ("0000:03:00.0", "-1")):
        write(f"devices/pci0000:00/{address}/numa_node", node)
    write("devices/lost/0000:04:00.0/numa_node", "-1")
    bus = sys_ / "bus/pci/devices"
    bus.mkdir(parents=True)
    for address, above in (("01", "pci0000:00"), ("02", "pci0000:00"), ("03", "pci0000:00"), ("04", "lost")):
        (bus / f"0000:{address}:00.0").symlink_to(f"../../../devices/{above}/0000:{address}:00.0")
    write("bus/nd/devices/region0/numa_node", "2")
    return tmp_path


def pci(number):
    return AllocatedDevice(
        id=f"d{number}", kind=Kind.GPU, name=f"gpu{number}", node="n", driver="x", aliases=(f"pci:0000:0{number}:00.0",)
    )


REGION = AllocatedDevice(id="r", kind=Kind.PMEM, name="region0", node="n", driver="x", aliases=("nd:region0",))
ALL = range(16)


def test_a_device_is_where_it_says_or_where_what_it_hangs_from_is(tree):
    assert [numa_node(pci(number), tree) for number in (1, 2, 3, 4)] == [0, 1, 1, None]
    assert numa_node(REGION, tree) == 2
    assert numa_node(pci(9), tree) is None
    assert numa_node(pci(2), tree / "sys") == 1, "a tree may begin at sys"


def test_the_cpus_near_all_devices_are_chosen_and_no_others(tree):
    found = choose([pci(1)], tree, ALL, {0, 1, 2})
    assert (found.cpus, found.nodes) == ((0, 1, 2, 3, 8, 9, 10, 11), (0,))
    both = choose([pci(1), pci(2)], tree, ALL, {0, 1, 2})
    assert (both.cpus, both.nodes) == (tuple(ALL), (0, 1))


def test_what_may_not_be_used_is_not_chosen(tree):
    assert choose([pci(2)], tree, {3, 5, 14}, {0, 1}).cpus == (5, 14)
    without = choose([pci(2)], tree, {5}, {0})
    assert (without.cpus, without.nodes) == ((5,), ())
    assert "no memory of NUMA node 1" in without.why
    nowhere = choose([pci(2)], tree, {0, 1}, {0, 1})
    assert (nowhere.cpus, nowhere.nodes) == ((), ())
    assert "none of the CPUs of NUMA node 1" in nowhere.why
    assert "none of the CPUs" in choose([REGION], tree, ALL, {0, 1, 2}).why


def test_one_device_of_which_nobody_knows_where_it_is_forbids_a_guess(tree):
    found = choose([pci(1), pci(4)], tree, ALL, {0, 1})
    assert found.cpus == ()
    assert "gpu4" in found.why


@pytest.mark.parametrize("memory", [Memory.BIND, Memory.PREFER, Memory.ANY])
def test_a_program_inherits_its_place(memory):
    cpu, node = min(os.sched_getaffinity(0)), min(allowed_nodes())
    orders = Orders(parent=os.getpid(), binding=Binding(cpus=(cpu,), nodes=(node,), memory=memory))
    look = "cat /proc/self/status /proc/self/numa_maps"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "hal.agent.launch", _json(orders), "sh", "-c", look],
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"Cpus_allowed_list:\t{cpu}\n" in done.stdout, done.stderr
    if "=" in done.stdout.partition("anon=")[1]:  # the kernel has NUMA, and numa_maps with it
        policy = {"bind": f"bind:{node}", "prefer": f"prefer (many):{node}", "no": "default"}[memory]
        assert policy in done.stdout or policy.replace(" (many)", "") in done.stdout


def test_a_place_that_the_kernel_refuses_is_an_error_that_says_so():
    code = (
        "from hal.agent.bind import *\n"
        "try: apply(Binding(cpus=(1 << 19,)))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "try: apply(Binding(nodes=(1023,)))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert all(line.startswith("AccessDenied during bind") and "--numa no" in line for line in lines)


def _json(orders):
    import msgspec

    return msgspec.json.encode(orders).decode()
