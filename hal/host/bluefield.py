"""BlueField cards: one device out of several PCI functions, and the rshim through which the host talks to it."""

from __future__ import annotations

from hal.host.identity import BLUEFIELD, is_bluefield
from hal.host.missing import Missing
from hal.host.pci import Function, address_on
from hal.host.pcie import vpd_field
from hal.host.scan import Scan, word
from hal.model.attributes import Absence, Attribute
from hal.model.kind import Kind

_VPD_BYTES = (256, 1024)
_MODES = {"dpu": "dpu", "nic": "nic", "embedded": "dpu", "restricted": "restricted"}


class Card:
    """A card as found: its functions by address, and its serial number if that can be read."""

    def __init__(self, functions: list[Function], serial: str | None, why: Attribute) -> None:
        self.functions = functions
        self.serial = serial
        self.serial_attribute = why
        self.id = ""

    @property
    def generation(self) -> str:
        """``BlueField-3``, or empty."""
        for function in self.functions:
            named = BLUEFIELD[function.device][1]
            if named:
                return named
        return ""


def find_cards(scan: Scan) -> list[Card]:
    """Group the functions of BlueFields by slot and serial number; what shares a slot with one has it as parent."""
    slots: dict[str, list[Function]] = {}
    for address in sorted(scan.functions):
        function = scan.functions[address]
        if is_bluefield(function.vendor, function.device):
            slots.setdefault(function.slot, []).append(function)
    by_serial: dict[str, Card] = {}
    cards: list[Card] = []
    for functions in slots.values():
        if not any(BLUEFIELD[function.device][0] in ("nic", "management") for function in functions):
            continue
        serial, why = _serial(scan, functions)
        known = by_serial.get(serial) if serial is not None else None
        if known is not None:  # one card in two slots: a host of two sockets has a cable to each
            known.functions.extend(functions)
            continue
        card = Card(functions, serial, why)
        cards.append(card)
        if serial is not None:
            by_serial[serial] = card
    for card in cards:
        own = word(card.serial) if card.serial is not None else None
        card.id = f"dpu-{own}" if own is not None else f"{scan.node}/pci/{card.functions[0].address}"
        for function in card.functions:
            scan.parents[function.slot] = card.id
    return cards


def _serial(scan: Scan, functions: list[Function]) -> tuple[str | None, Attribute]:
    """Read the serial number from the vital product data of the first function that has any."""
    why = Attribute(source="sysfs:vpd", absent=Absence.NOT_REPORTED)
    for function in functions:
        for limit in _VPD_BYTES:  # slow on real hardware, about a millisecond for four bytes: more only if needed
            data = scan.tree.read_bytes(function.path + "/vpd", limit)
            if isinstance(data, Missing):
                if data.reason is not Absence.NOT_REPORTED:
                    why = data.attribute("sysfs:vpd")
                break
            serial = vpd_field(data, "SN")
            if serial is not None:
                return serial, Attribute(serial, "sysfs:vpd")
            why = Attribute(source="sysfs:vpd", absent=Absence.MALFORMED, detail="no serial number in it")
    return None, why


def add_cards(scan: Scan, cards: list[Card]) -> None:
    """Add the cards, after the devices that are parts of them have taken their functions."""
    rshims = _find_rshims(scan)
    for number, card in enumerate(cards):
        free = [one for one in card.functions if one.address not in scan.taken]
        main = free[-1] if free else card.functions[0]
        rshim = _rshim_of(scan, card, rshims, alone=len(cards) == 1)
        facts = scan.facts(main)
        facts["serial"] = card.serial_attribute
        generation = card.generation
        facts["generation"] = (
            Attribute(generation, "pci-ids") if generation else Attribute(source="pci-ids", absent=Absence.NOT_REPORTED)
        )
        if generation:
            facts["model"] = Attribute(generation, "pci-ids")
        facts["functions"] = Attribute(tuple(one.address for one in card.functions), "sysfs:bus/pci")
        facts["mode"] = _mode(rshims.get(rshim) if rshim is not None else None)
        aliases = [name for one in free for name in scan.take(one.address)]
        if rshim is not None:
            aliases.append("rshim:" + rshim)
            facts["rshim"] = Attribute(rshim, "sysfs:class/rshim")
        else:
            facts["rshim"] = Attribute(source="sysfs:class/rshim", absent=Absence.NOT_REPORTED)
        if card.serial is not None:
            aliases.append("serial:" + card.serial)
        scan.add(
            id=card.id,
            else_id=f"dpu/{number}",
            kind=Kind.DPU,
            name=f"dpu{number}",
            location=scan.locate(main),
            attributes=facts,
            aliases=aliases,
        )


def _find_rshims(scan: Scan) -> dict[str, dict[str, str] | Missing]:
    """Return the rshim devices and what their ``misc`` file says.

    On a running machine that file is served by a user process, which may hang: only a recorded one is read.
    """
    names = {name.partition("!")[0] for base in ("class/rshim", "class/cuse") for name in scan.tree.names(base)}
    if scan.host.dev is not None:
        names |= set(scan.host.dev.names(""))
    found: dict[str, dict[str, str] | Missing] = {}
    for name in sorted(names):
        if not name.startswith("rshim") or not name[5:].isdecimal():
            continue
        if scan.host.live or scan.host.dev is None:
            found[name] = Missing(Absence.UNSUPPORTED, "the bluefield driver asks the rshim process")
            continue
        text = scan.host.dev.read(f"{name}/misc")
        if isinstance(text, str):
            fields = (line.split(None, 1) for line in text.split("\n"))
            found[name] = {pair[0]: pair[1].strip() for pair in fields if len(pair) == 2}
        else:
            found[name] = text
    return found


def _rshim_of(scan: Scan, card: Card, rshims: dict[str, dict[str, str] | Missing], *, alone: bool) -> str | None:
    """Join a card with its rshim by the PCI address in sysfs or in ``misc``, or because there is one of each."""
    addresses = {function.address for function in card.functions}
    for name, fields in rshims.items():
        place = scan.tree.resolve(f"class/rshim/{name}")
        if place is not None and address_on(place) in addresses:
            return name
        if isinstance(fields, dict):
            where = fields.get("DEV_NAME", "").partition("-")[2]
            if any(where == function.address for function in card.functions):
                return name
    if alone and len(rshims) == 1:
        name, fields = next(iter(rshims.items()))
        if not isinstance(fields, dict) or "DEV_NAME" not in fields:
            return name
    return None


def _mode(fields: dict[str, str] | Missing | None) -> Attribute:
    source = "rshim:misc"
    if fields is None:
        return Attribute(source=source, absent=Absence.NOT_REPORTED, detail="no rshim")
    if isinstance(fields, Missing):
        return fields.attribute(source)
    told = fields.get("BF_MODE", "").split("(")[0].strip().lower()
    for word_, mode in _MODES.items():
        if told.startswith(word_):
            return Attribute(mode, source)
    return Attribute(source=source, absent=Absence.NOT_REPORTED, detail="rshim before 2.2 does not say")
