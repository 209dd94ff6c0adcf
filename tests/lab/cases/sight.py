"""What hal-probe sees, against what lspci, ndctl, rdma and the kernel's own files say."""

from __future__ import annotations

import json

from tests.lab import hardware
from tests.lab.lab import Lab, value


def probe(lab: Lab) -> str:
    """hal-probe answers in the guest, and no driver fails"""
    lab.seen = lab.probe()
    problems = [f"{problem['source']}: {problem['detail']}" for problem in lab.seen["problems"]]
    assert lab.seen["exit_code"] in (0, 1), "\n".join(problems)
    kinds = sorted({device["kind"] for device in lab.seen["devices"]})
    return "; ".join([f"{len(lab.seen['devices'])} devices: {', '.join(kinds)}", *problems])


def numa(lab: Lab) -> str:
    """two NUMA nodes, with the memory and the processors that the kernel gives them"""
    online = lab.guest.text("/sys/devices/system/node/online")
    assert online == "0-1", online
    processors, memories = lab.devices("cpu"), lab.devices("memory")
    for node in (0, 1):
        folder = f"/sys/devices/system/node/node{node}"
        cpulist = lab.guest.text(f"{folder}/cpulist")
        assert value(processors[f"cpu{node}"], "cpulist") == cpulist
        total = next(line for line in lab.guest.text(f"{folder}/meminfo").splitlines() if "MemTotal" in line)
        assert value(memories[f"memory{node}"], "memory_bytes") == int(total.split()[-2]) << 10
    return f"nodes {online}"


def functions(lab: Lab) -> str:
    """every PCI function that lspci lists, with the same class and ids, and no other"""
    listed = {}
    for line in lab.guest.run("lspci", "-D", "-n").out.splitlines():
        address, code, ids = line.split()[:3]
        listed[address] = code.rstrip(":"), ids
    shown = {}
    for device in lab.seen["devices"]:
        address = device["location"].get("pci_address")
        if address is not None:
            ids = f"{value(device, 'pci_vendor')}:{value(device, 'pci_device')}"
            shown[address] = value(device, "pci_class")[:4], ids
    assert shown == listed, (
        f"only lspci: {listed.items() - shown.items()}; only hal-probe: {shown.items() - listed.items()}"
    )
    return f"{len(listed)} functions"


def nvme(lab: Lab) -> str:
    """the NVMe behind the far bridge is on NUMA node 1, and its bridge too"""
    drives = {value(device, "serial"): device for device in lab.devices("nvme").values()}
    assert set(drives) == {hardware.FAR_NVME, hardware.HOT_NVME}, sorted(drives)
    far = drives[hardware.FAR_NVME]
    address = far["location"]["pci_address"]
    assert far["location"].get("numa_node") == 1 == int(lab.guest.text(f"/sys/bus/pci/devices/{address}/numa_node"))
    assert value(far, "size_bytes") == hardware.NVME_BYTES
    ports = [device for device in lab.devices("switch").values() if device["name"] in far["location"]["pci_path"]]
    assert [port["location"].get("numa_node") for port in ports] == [1]
    return f"{far['name']} at {address}"


def cxl(lab: Lab) -> str:
    """the CXL memory device, with its size and serial number"""
    devices = [device for device in lab.devices("memory").values() if "cxl:mem0" in device.get("aliases", ())]
    assert len(devices) == 1, sorted(lab.devices("memory"))
    device = devices[0]
    assert (
        value(device, "pmem_bytes")
        == hardware.CXL_BYTES
        == int(lab.guest.text("/sys/bus/cxl/devices/mem0/pmem/size"), 0)
    )
    assert int(value(device, "serial"), 16) == hardware.CXL_SERIAL
    address = device["location"]["pci_address"]
    assert lab.guest.run("lspci", "-D", "-n", "-s", address).out.split()[1] == "0502:"
    return f"{device['id']} at {address}"


def regions(lab: Lab) -> str:
    """the NVDIMM regions that ndctl lists, with the same sizes, nodes, DIMMs and namespaces"""
    buses = json.loads(lab.guest.run("ndctl", "list", "-BDRNiv").out)
    listed = {region["dev"]: region for bus in buses for region in bus.get("regions", ())}
    dimms = {dimm["dev"]: dimm.get("id", "") for bus in buses for dimm in bus.get("dimms", ())}
    shown = lab.devices("pmem")
    assert set(shown) == set(listed) == {f"region{index}" for index in range(len(hardware.NVDIMM_NODES))}, (
        sorted(shown),
        sorted(listed),
    )
    for name, region in listed.items():
        device = shown[name]
        assert value(device, "size_bytes") == region["size"] == hardware.NVDIMM_BYTES
        assert value(device, "numa_node") == region["numa_node"], (device, region)
        assert (value(device, "persistence_domain") or "unknown") == region["persistence_domain"]
        mapped = [dimms[mapping["dimm"]].rpartition("-")[2] for mapping in region["mappings"]]
        assert [dimm.removeprefix("dimm-") for dimm in value(device, "dimms")] == mapped
        assert {f"nd:{namespace['dev']}" for namespace in region["namespaces"]} <= set(device.get("aliases", ()))
    assert sorted(value(device, "numa_node") for device in shown.values()) == sorted(hardware.NVDIMM_NODES)
    return ", ".join(f"{device['id']} on node {value(device, 'numa_node')}" for device in shown.values())


def nics(lab: Lab) -> str:
    """the RDMA devices that rdma and ibv_devinfo list, with their node GUIDs, states and interfaces"""
    links = {link["ifname"]: link for link in json.loads(lab.guest.run("rdma", "-j", "link").out)}
    shown = lab.devices("rnic")
    assert set(shown) == set(links) == {"rxe0", "rxe1"}, (sorted(shown), sorted(links))
    for name, link in links.items():
        device = shown[name]
        guid = lab.guest.text(f"/sys/class/infiniband/{name}/node_guid").replace(":", "")
        assert device["id"] == f"rnic-{guid}"
        assert value(device, "netdev") == link["netdev"], device
        assert value(device, "port_state") == link["state"].lower() == "active"
    names = lab.guest.run("ibv_devices").out
    assert all(name in names for name in shown), names
    return ", ".join(f"{name} on {link['netdev']}" for name, link in links.items())


CASES = (probe, numa, functions, nvme, cxl, regions, nics)
