"""What all kinds need to turn tables into a host: elements, models, slots, checks."""

from __future__ import annotations

from typing import TypeVar, cast

from hal_mocks.graph import Numa
from hal_mocks.profile_each import Element, elements
from hal_mocks.profile_layout import Function, Layout, Slot
from hal_mocks.profile_models import CpuModel, Library, Model, one_of, split_id
from hal_mocks.profile_numa import numa_nodes
from hal_mocks.profile_schema import Attached, HostTable, Mistake, Profile, Table

M = TypeVar("M", bound=Model)


class Plan:
    """A host in the making: slots are collected first, then addresses are given out, then structs are made."""

    def __init__(self, profile: Profile, host: HostTable) -> None:
        self.profile = profile
        self.host = host
        self.library = Library(profile.model)
        cpu = CpuModel()
        if host.cpu in self.library.names("cpu"):
            cpu = self.library.find("cpu", host.cpu, CpuModel, ())
        self.cpu_model = cpu.title or host.cpu
        self.layout = Layout(self.library, cpu.root_port, cpu.speed_gts or 16.0)
        self.numa: tuple[Numa, ...] = numa_nodes(profile, host)
        self._add_switches()

    def elements(self, section: str, default_name: str = "") -> list[Element]:
        """Count out the elements of a section."""
        return elements(section, cast(list[Table], getattr(self.profile, section)), default_name)

    def model(self, element: Element, section: str, kind: type[M]) -> M:
        """Return the model that an element names."""
        name = element.text("model")
        if not name:
            hint = one_of("", self.library.names(section))
            raise Mistake(element.path, f"[[{section}]] needs a model", f'model = "...": {hint}')
        return self.library.find(section, name, kind, element.at("model"))

    def check_numa(self, element: Element, numa: int) -> None:
        """See that a NUMA node exists; -1 stands for a firmware that does not say."""
        known = [node.id for node in self.numa]
        if numa != -1 and numa not in known:
            raise Mistake(element.at("numa"), f"there is no NUMA node {numa}", one_of(str(numa), map(str, known)))

    def function(self, element: Element, model: Model, class_code: str = "", driver: str = "") -> Function:
        """Return the PCI function of a model."""
        return Function(
            *split_id(model.pci, element.at("model")),
            class_code or model.class_code,
            driver=driver or model.driver,
            subsystem=split_id(model.subsystem, element.at("model")),
        )

    def put(self, element: Element, model: Model, functions: list[Function], first: bool = True) -> Slot:
        """Give an element a slot. ``first``: it is the element's first one, to which a given address belongs."""
        table = cast(Attached, element.table)
        speed = model.speed_gts if table.link_speed_gts is None else table.link_speed_gts
        width = model.width if table.link_width is None else table.link_width
        if not 0 <= width <= 32:
            raise Mistake(element.at("link_width"), f"a link of {width} lanes", "1, 2, 4, 8, 16")
        if not 0 <= speed <= 128:
            raise Mistake(element.at("link_speed_gts"), f"a link of {speed} GT/s", "2.5, 5.0, 8.0, 16.0, 32.0, 64.0")
        slot = Slot(element.path, functions, speed, width, max(model.speed_gts, speed), max(model.width, width))
        switch = element.text("switch")
        numa = element.whole("numa")
        if numa is not None:
            self.check_numa(element, numa)
            if switch:
                raise Mistake(element.at("numa"), "a device below a switch is on the switch's node", "leave numa out")
        given = element.text("pci") if first else ""
        self.layout.put(slot, switch, 0 if numa is None else numa, element.whole("domain") or 0, given)
        return slot

    def add_others(self) -> None:
        """Put the functions of ``[[pci]]``, which are nothing but their numbers."""
        for element in self.elements("pci"):
            numbers = split_id(f"{element.text('vendor')}:{element.text('device')}", element.at("vendor"))
            code = element.text("class_code")
            if len(code) != 6 or any(digit not in "0123456789abcdef" for digit in code):
                raise Mistake(element.at("class"), f"{code!r} is no PCI class", "six hex digits, such as '030200'")
            function = Function(*numbers, code, driver=element.text("driver"), serial=element.text("serial"))
            self.put(element, Model(speed_gts=16.0, width=16), [function])

    def _add_switches(self) -> None:
        for element in self.elements("switch", "switch{i}"):
            numa = element.whole("numa") or 0
            self.check_numa(element, numa)
            domain, bus = element.whole("domain") or 0, element.whole("bus")
            self.layout.add_switch(element.name, element.path, numa, domain, bus, element.text("model"))
