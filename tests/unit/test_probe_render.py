"""What people see: never wider than the terminal, never something a terminal obeys; what programs read: valid."""

from __future__ import annotations

import math
import re

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.agent.report import DriverReport
from hal.cli.render.describe import decimal_size, detail, link, size
from hal.cli.render.matrix import legend, matrix
from hal.cli.render.prometheus import metrics
from hal.cli.render.table import device_table
from hal.cli.render.text import Style, clean, cut, cut_middle, pad, width
from hal.cli.render.tree import tree
from hal.cli.render.yaml import emit
from hal.drivers.contract import READY, Cause, Readiness
from hal.model.device import Device, Location
from hal.model.kind import Kind
from hal.topology.distance import matrices
from hal.topology.graph import build
from tests.golden.machines import degraded, device, facts, gpu_server

texts = st.text(st.characters(codec=None), max_size=24)
wide = st.text(st.sampled_from("ab-:0配置機é\u0301ﾊ한"), max_size=30)


@st.composite
def devices(draw: st.DrawFn) -> Device:
    kind = draw(st.sampled_from(list(Kind)))
    name = draw(texts | wide)
    identity = f"id-{draw(st.integers(0, 10**9))}"
    return Device(
        id=identity,
        kind=kind,
        name=name,
        driver="test",
        location=Location(
            node=draw(st.sampled_from(["n1", "n2"]) | wide),
            numa_node=draw(st.none() | st.integers(0, 3)),
            pci_address=draw(st.none() | st.just("0000:17:00.0") | texts),
            pci_path=tuple(draw(st.lists(st.sampled_from(["pci0000:10", "a", "b", "配"]), max_size=4))),
        ),
        attributes=facts(model=draw(texts | wide), firmware=draw(texts), link_width=draw(st.integers(0, 64))),
        conditions=(degraded(identity),) if draw(st.booleans()) else (),
    )


machines = st.lists(devices(), min_size=1, max_size=6, unique_by=lambda found: found.id)


@settings(max_examples=40, deadline=None)
@given(machines, st.integers(1, 200))
def test_no_table_tree_or_matrix_is_wider_than_the_terminal(machine: list[Device], columns: int):
    topology = build(machine)
    found = matrices(machine)
    lines = [*device_table(machine, columns), *tree(topology, columns, all=True), *legend(found, columns)]
    for one in found:
        lines += matrix(one, columns)
    assert max(map(width, lines)) <= columns


@settings(max_examples=40, deadline=None)
@given(machines, st.none() | st.integers(20, 200))
def test_colour_changes_nothing_but_the_colour(machine: list[Device], columns: int | None):
    painted = device_table(machine, columns, Style("always"))
    assert [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in painted] == device_table(machine, columns)


@settings(max_examples=30, deadline=None)
@given(machines)
def test_nothing_that_a_terminal_obeys_is_ever_printed(machine: list[Device]):
    for line in [*device_table(machine), *tree(build(machine), all=True)]:
        assert line.isprintable(), ascii(line)


@given(texts | wide, st.integers(0, 40))
def test_a_shortened_text_fits_and_a_short_one_is_left_alone(text: str, columns: int):
    text = clean(text)
    for shortened in (cut(text, columns), cut_middle(text, columns)):
        assert width(shortened) <= columns
        if width(text) <= columns:
            assert shortened == text


def test_wide_and_combining_characters_are_counted_as_terminals_draw_them():
    assert width("gpu配置") == 7
    assert width("e\u0301") == 1
    assert pad("配", 4) == "配  "
    assert cut_middle("abcdefghij", 5) == "ab…ij"


def test_bytes_that_were_no_text_and_controls_become_escapes():
    assert clean("a\x1b[31mb") == "a\\x1b[31mb"
    assert clean(b"\xff\n".decode("utf-8", "surrogateescape")) == "\\xff\\x0a"
    assert clean("right\u202eleft") == "right\\u202eleft"


def test_the_table_gives_up_detail_first_and_the_name_last():
    machine = gpu_server()
    full, narrow, tiny = (device_table(machine, columns)[0] for columns in (None, 60, 12))
    assert full.split()[-1] == "DETAIL"
    assert "NAME" in narrow
    assert "HEALTH" in narrow
    assert "DETAIL" not in narrow
    assert tiny.strip().startswith("NAME")


def test_several_machines_are_told_apart():
    lines = device_table([*gpu_server("n1"), *gpu_server("n2", rack="r7")])
    assert "n1" in lines
    assert "n2 in rack r7" in lines


def test_sizes_and_links_read_well():
    assert [size(80 << 30), size(1536 << 30), size(64 << 20), size(0)] == ["80 GiB", "1.5 TiB", "64 MiB", "0 B"]
    assert decimal_size(3_840_755_982_336) == "3.84 TB"
    slow = device(Kind.GPU, "gpu0", facts=dict(zip(_LINK, (2.5, 8, 32.0, 16), strict=True)))
    odd = device(Kind.GPU, "gpu0", facts=dict(zip(_LINK, (20.0, 8, 20.0, 8), strict=True)))
    assert [link(slow), link(odd), link(device(Kind.GPU, "g"))] == ["gen1 x8 / gen5 x16", "20 GT/s x8", "-"]
    assert detail(device(Kind.GPU, "gpu0", id="G", conditions=(degraded("G"),))).startswith("LinkDegraded: x8 instead")


_LINK = ("link_speed_gts", "link_width", "link_max_speed_gts", "link_max_width")

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=25,
)


@settings(max_examples=120, deadline=None)
@given(values)
def test_any_yaml_reader_gives_back_the_same_values(value: object):
    again = yaml.safe_load(emit(value))
    assert again == value
    assert repr(again) == repr(value)  # 1 is not 1.0 and not True


def test_words_that_yaml_takes_for_something_else_stay_texts():
    for word in (
        "no",
        "On",
        "NULL",
        "~",
        "1e3",
        "0x10",
        "1_000",
        "12:30:00",
        "2026-01-01",
        "=",
        "<<",
        "- a",
        "a: b",
        "#",
    ):
        assert yaml.safe_load(emit([word])) == [word]
    assert math.isnan(yaml.safe_load(emit(float("nan"))))


_LINE = re.compile(r'[a-z_]+(\{([a-z_]+="([^"\\\n]|\\[\\"n])*",?)*\})? -?[0-9.e+-]+')


@settings(max_examples=40, deadline=None)
@given(machines, texts)
def test_prometheus_text_has_only_well_formed_lines(machine: list[Device], detail: str):
    report = DriverReport(driver="d", plugin="p", kinds=(), readiness=Readiness(cause=Cause.BROKEN, detail=detail))
    for line in metrics(machine, [report], True).splitlines():
        assert line.startswith(("# HELP hal_", "# TYPE hal_")) or _LINE.fullmatch(line), ascii(line)


def test_prometheus_says_health_links_and_counts():
    lines = metrics(gpu_server(sick=True), [DriverReport(driver="d", plugin="p", kinds=(), readiness=READY)], False)
    assert 'hal_device_health{node="n1",device="GPU-n1-3",health="degraded"} 1\n' in lines
    assert 'hal_devices{node="n1",kind="gpu",health="healthy"} 7\n' in lines
    assert 'hal_device_pci_link_lanes{node="n1",device="GPU-n1-0",which="max"} 16\n' in lines
    assert lines.endswith("hal_probe_partial 0\n")
