"""RDMA NICs, DPU cards and network interfaces of a profile."""

from __future__ import annotations

from hal_mocks.graph import Dpu, Nic, Rnic, RnicPort
from hal_mocks.profile_each import Element
from hal_mocks.profile_layout import Function, Slot
from hal_mocks.profile_models import DpuModel, NicModel, RnicModel, one_of, size_bytes, split_id
from hal_mocks.profile_plan import Plan
from hal_mocks.profile_schema import Mistake

DPU_MODES = ("dpu", "restricted", "nic")
PlannedRnics = list[tuple[Element, RnicModel, Slot | None]]
PlannedDpus = list[tuple[Element, DpuModel, Slot]]
PlannedNics = list[tuple[Element, NicModel, Slot | None]]
_ETHERNET, _INFINIBAND, _DMA_CONTROLLER = "020000", "020700", "080100"


def netdev_name(address: str, link_layer: str) -> str:
    """Return the name that systemd gives an interface by its PCI address (``enp27s0f0``, ``ibp24s0``)."""
    domain, bus, rest = address.split(":")
    device, _, function = rest.partition(".")
    prefix = ("en" if link_layer == "Ethernet" else "ib") + (f"P{int(domain, 16)}" if int(domain, 16) else "")
    suffix = f"f{function}" if function != "0" else ""
    return f"{prefix}p{int(bus, 16)}s{int(device, 16)}{suffix}"


def plan_rnics(plan: Plan) -> PlannedRnics:
    """Put the RDMA NICs into slots; a soft one needs none."""
    found: PlannedRnics = []
    for element in plan.elements("rnic", "mlx5_{i}"):
        if element.value("soft"):
            found.append((element, plan.library.find("rnic", "rxe", RnicModel, element.path), None))
            continue
        model = plan.model(element, "rnic", RnicModel)
        if not model.pci:
            raise Mistake(element.at("model"), f"model {element.text('model')!r} sits on no PCI bus", "soft = true")
        code = _ETHERNET if _layer(element, model) == "Ethernet" else _INFINIBAND
        found.append((element, model, plan.put(element, model, [plan.function(element, model, code)])))
    return found


def make_rnics(planned: PlannedRnics) -> list[Rnic]:
    """Return the RDMA NICs, their addresses being known."""
    found: list[Rnic] = []
    for element, model, slot in planned:
        layer = _layer(element, model)
        rate = element.value("rate_gbps")
        pci = slot.addresses[0] if slot else ""
        netdev = element.text("netdev")
        if not netdev and not pci:
            raise Mistake(element.path, "a soft RDMA NIC needs the network interface it works over", 'netdev = "..."')
        port = RnicPort(link_layer=layer, rate_gbps=model.rate if rate is None else rate)
        found.append(
            Rnic(
                name=element.name,
                node_guid=_guid(element),
                netdev=netdev or netdev_name(pci, layer),
                mac=mac_of(element),
                pci=pci,
                model=model.title,
                firmware=element.text("firmware") or model.firmware,
                board_id=model.board_id,
                ports=tuple(
                    RnicPort(number=number + 1, link_layer=port.link_layer, rate_gbps=port.rate_gbps)
                    for number in range(element.value("ports"))
                ),
                hca_type=model.hca,
            )
        )
    return found


def plan_dpus(plan: Plan) -> PlannedDpus:
    """Put the cards into slots: their network functions, then the management function (RShim)."""
    found: PlannedDpus = []
    for element in plan.elements("dpu", "dpu{i}"):
        model = plan.model(element, "dpu", DpuModel)
        code = _ETHERNET if _layer(element, model) == "Ethernet" else _INFINIBAND
        functions = [plan.function(element, model, code) for _ in range(model.ports)]
        subsystem = split_id(model.subsystem, element.at("model"))
        management = split_id(model.management, element.at("model"))
        functions.append(Function(*management, _DMA_CONTROLLER, subsystem=subsystem))
        found.append((element, model, plan.put(element, model, functions)))
    return found


def make_dpus(planned: PlannedDpus, first: int) -> list[tuple[Dpu, list[Rnic]]]:
    """Return the cards with the RDMA NICs that they own, numbered from ``first``."""
    found: list[tuple[Dpu, list[Rnic]]] = []
    shims = 0
    for element, model, slot in planned:
        mode = element.text("mode")
        if mode not in DPU_MODES:
            raise Mistake(element.at("mode"), f"unknown mode {mode!r}", one_of(mode, DPU_MODES))
        layer = _layer(element, model)
        psid = element.text("psid") or model.psid
        firmware = element.text("firmware") or model.firmware
        owned = [
            Rnic(
                name=f"mlx5_{first + port}",
                node_guid="",
                netdev=netdev_name(address, layer),
                mac="",
                pci=address,
                model=model.title,
                firmware=firmware,
                board_id=psid,
                ports=(RnicPort(link_layer=layer, rate_gbps=model.rate),),
                dpu=element.name,
                hca_type=model.hca,
            )
            for port, address in enumerate(slot.addresses[: model.ports])
        ]
        first += len(owned)
        privileged = bool(element.value("privileged")) and mode != "restricted"
        offloads = element.value("offloads")
        card = Dpu(
            name=element.name,
            serial=element.text("serial"),
            psid=psid,
            generation=model.generation,
            pci=tuple(slot.addresses),
            rshim=f"rshim{shims}" if privileged else "",
            rnics=tuple(rnic.name for rnic in owned),
            cores=model.cores,
            memory_bytes=size_bytes(model.memory, element.path),
            mode=mode,
            firmware=firmware,
            offloads=model.offloads if offloads is None else tuple(offloads),
            max_vfs=model.max_vfs,
            nvme=tuple(element.value("nvme")),
            privileged=privileged,
        )
        shims += privileged
        found.append((card, owned))
    return found


def plan_nics(plan: Plan) -> PlannedNics:
    """Put the network interfaces into slots."""
    found: PlannedNics = []
    for element in plan.elements("nic"):
        model = plan.model(element, "nic", NicModel)
        found.append((element, model, plan.put(element, model, [plan.function(element, model)]) if model.pci else None))
    return found


def make_nics(planned: PlannedNics) -> tuple[Nic, ...]:
    """Return the network interfaces, their addresses being known."""
    return tuple(
        Nic(
            name=element.name or (netdev_name(slot.addresses[0], "Ethernet") if slot else f"eth{number}"),
            pci=slot.addresses[0] if slot else "",
            mac=mac_of(element),
            rate_gbps=model.rate,
        )
        for number, (element, model, slot) in enumerate(planned)
    )


def mac_of(element: Element) -> str:
    """Return the MAC address that an element gives, or nothing."""
    mac = element.text("mac")
    parts = mac.split(":")
    if mac and (len(parts) != 6 or any(len(p) != 2 or not _is_hex(p) for p in parts)):
        raise Mistake(element.at("mac"), f"{mac!r} is no MAC address", "such as 'a0:88:c2:01:02:03'")
    return mac


def _guid(element: Element) -> str:
    guid = element.text("guid")
    digits = guid.replace(":", "")
    if not guid:
        return ""
    if len(digits) != 16 or not _is_hex(digits):
        raise Mistake(element.at("guid"), f"{guid!r} is no GUID", "16 hex digits, such as 'a088:c203:00ab:5f40'")
    return digits


def _is_hex(text: str) -> bool:
    return all(digit in "0123456789abcdef" for digit in text)


def _layer(element: Element, model: RnicModel | DpuModel) -> str:
    return element.text("link_layer") if element.value("link_layer") else model.link_layer
