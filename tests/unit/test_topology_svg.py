"""The picture is well-formed, shows every device once, and nothing covers anything else by halves."""

from __future__ import annotations

from itertools import combinations
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from hal.model.device import Device
from hal.model.health import Presence
from hal.model.kind import Kind
from hal.topology.svg import picture
from hal.topology.svg_boxes import measure, shorten
from tests.golden.machines import device, gpu_server

SVG = "{http://www.w3.org/2000/svg}"


def parse(drawn: str) -> ElementTree.Element:
    return ElementTree.fromstring(drawn)


def words(drawn: str) -> list[str]:
    return [element.text or "" for element in parse(drawn).iter(SVG + "text")]


def boxes(drawn: str) -> list[tuple[float, float, float, float]]:
    found = []
    for element in parse(drawn).iter(SVG + "rect"):
        if element.get("x") is not None:
            x, y, w, h = (float(element.get(name) or 0) for name in ("x", "y", "width", "height"))
            found.append((x, y, x + w, y + h))
    return found


def test_every_device_is_named_once_and_its_switch_is():
    said = words(picture(gpu_server(sick=True)))
    for name in (*(f"gpu{index}" for index in range(8)), "mlx5_3", "nvme0", "region0"):
        assert said.count(name) == 1
    assert "PCIe switch 0000:11:00.0" in said
    assert "NUMA 1 · CPUs 8-15 · 512 GiB" in said
    assert any(text.startswith("NVLink through NVSwitch: gpu0 to gpu7, 18 links") for text in said)
    assert "degraded: LinkDegraded" in said


def test_parts_are_drawn_within_their_device():
    machine = [
        device(Kind.MEMORY, "dimm0", id="dimm-7", numa=0),
        device(Kind.UPMEM, "dpu_rank0", id="R0", parent="dimm-7"),
        device(Kind.UPMEM, "dpu_rank1", id="R1", parent="dimm-7", presence=Presence.GHOST),
        device(Kind.PMEM, "region0", id="P", facts={"dimms": ("9",)}),
        device(Kind.MEMORY, "nmem0", id="dimm-9"),
    ]
    said = words(picture(machine))
    assert {name: said.count(name) for name in ("dimm0", "dpu_rank0", "dpu_rank1", "nmem0")} == {
        "dimm0": 1,
        "dpu_rank0": 1,
        "dpu_rank1": 1,
        "nmem0": 1,
    }


def test_boxes_are_apart_or_within_one_another_and_on_the_page():
    drawn = picture([*gpu_server("n1", "r1"), *gpu_server("n2", "r1", sick=True), *gpu_server("n3")])
    root = parse(drawn)
    page_width, page_height = float(root.get("width") or 0), float(root.get("height") or 0)
    for one, other in combinations(boxes(drawn), 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        nested = _within(one, other) or _within(other, one)
        assert apart or nested, (one, other)
    assert all(_within(box, (0, 0, page_width, page_height)) for box in boxes(drawn))


def _within(inner: tuple[float, ...], outer: tuple[float, ...]) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(codec=None), min_size=1, max_size=40), min_size=1, max_size=5))
def test_whatever_hardware_calls_itself_the_picture_is_xml(names: list[str]):
    machine: list[Device] = [
        device(Kind.GPU, name, node=name, id=f"{index}", facts={"model": name}) for index, name in enumerate(names)
    ]
    assert parse(picture(machine)).tag == SVG + "svg"


@given(st.text(max_size=60), st.integers(20, 300))
def test_a_shortened_text_fits_its_room(text: str, room: int):
    assert measure(shortened := shorten(text, 11, room), 11) <= room or shortened == "…"
