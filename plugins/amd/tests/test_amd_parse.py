"""The parsers give what was written, whatever else the text holds, and raise for nothing."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal_amd import metrics, parse
from plugins.amd.tests.amd_trees import metrics_table

NAMES = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=20)
WORDS = st.integers(0, (1 << 64) - 1)
PARSERS = (
    parse.properties,
    parse.clocks,
    parse.error_counts,
    parse.bad_pages,
    parse.modes,
    parse.unique_id,
    parse.speed_gts,
    parse.architecture,
)


@given(st.text())
def test_no_text_makes_a_parser_raise(text):
    for parser in PARSERS:
        parser(text)


@given(st.binary(max_size=200))
def test_no_table_makes_its_parser_raise(data):
    metrics.parse(data)


@given(
    st.dictionaries(NAMES, WORDS), st.lists(st.sampled_from(("", "name", "name x", "a -1", "b 1 2", f"c {1 << 64}")))
)
def test_properties_are_read_among_lines_that_are_none(values, noise):
    lines = [f"{name} {value}" for name, value in values.items()]
    assert parse.properties("\n".join([*lines, *noise])) == values


@given(st.lists(st.integers(1, 9999), min_size=1, unique=True), st.data())
def test_the_marked_clock_is_the_present_one_and_the_highest_the_most(states, data):
    marked = data.draw(st.none() | st.sampled_from(states))
    text = "\n".join(f"{n}: {mhz}Mhz{' *' if mhz == marked else ''}" for n, mhz in enumerate(states))
    found = parse.clocks(text)
    assert found is not None
    assert found.max_hz == max(states) * 10**6
    assert found.current_hz == (None if marked is None else marked * 10**6)


def test_a_clock_in_deep_sleep_is_a_clock():
    assert parse.clocks("S: 19Mhz *\n0: 500Mhz\n1: 2475Mhz") == parse.Clocks(19_000_000, 2_475_000_000)


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_error_counts_come_in_any_order(ue, ce):
    assert parse.error_counts(f"ue: {ue}\nce: {ce}") == {"ue": ue, "ce": ce}
    assert parse.error_counts(f"ce: {ce}\nue: {ue}\nde: 1\n") == {"ue": ue, "ce": ce, "de": 1}


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.sampled_from("RPF"))))
def test_bad_pages_are_counted_by_flag(pages):
    text = "\n".join(f"0x{page:08x} : 0x00001000 : {flag}" for page, flag in pages)
    assert parse.bad_pages(text) == {flag: sum(f == flag for _, f in pages) for flag in "RPF"}


@given(st.integers(1, (1 << 64) - 2))
def test_a_unique_id_is_sixteen_digits_however_it_is_written(number):
    expected = f"{number:016x}"
    assert {parse.unique_id(text) for text in (f"{number:016x}", f"0x{number:X}", f" {number:x}\n")} == {expected}


@pytest.mark.parametrize("text", ["0", "0" * 16, "f" * 16, "", "none", "-1", "0x", "1_0"])
def test_a_number_that_says_nothing_is_no_identity(text):
    assert parse.unique_id(text) is None


@given(st.integers(0, 0xFFFF), st.integers(0, 255), st.integers(0, 31), st.integers(0, 7), st.integers(0, 15))
def test_a_place_is_taken_apart_as_the_kernel_puts_it_together(domain, bus, slot, function, part):
    location = bus << 8 | slot << 3 | function | part << 28
    found = parse.place({"domain": domain, "location_id": location})
    assert found == (f"{domain:04x}:{bus:02x}:{slot:02x}.{function}", part)


@pytest.mark.parametrize(
    ("version", "target", "family"),
    [
        (90402, "gfx942", "CDNA 3"),
        (90010, "gfx90a", "CDNA 2"),
        (90008, "gfx908", "CDNA"),
        (90006, "gfx906", "GCN 5"),
        (90500, "gfx950", "CDNA 4"),
        (100302, "gfx1032", "RDNA 2"),
        (110000, "gfx1100", "RDNA 3"),
        (120001, "gfx1201", "RDNA 4"),
    ],
)
def test_targets_have_the_compilers_names(version, target, family):
    assert parse.gfx_target(version) == target
    assert parse.architecture(target) == family


@given(st.integers(0, (1 << 64) - 2), st.sampled_from([1, 2, 3, 4, 5]))
def test_energy_lies_at_one_place_in_every_revision(energy, content):
    found = metrics.parse(metrics_table(energy=energy, content=content))
    assert found is not None
    assert found.energy_joules == energy / 65536


def test_reasons_are_told_by_the_revision_that_has_them():
    power, heat = 1 << 0, 1 << 36
    assert metrics.parse(metrics_table(status=power | heat)).reasons == ("sw-power-cap", "sw-thermal-slowdown")
    assert metrics.parse(metrics_table(status=0)).reasons == ()
    assert metrics.parse(metrics_table(status=power, content=4)).reasons is None


@pytest.mark.parametrize("data", [b"", b"\x78", struct.pack("<HBB", 120, 1, 3), struct.pack("<HBB", 120, 2, 2) * 30])
def test_a_table_that_is_cut_off_or_of_another_format_tells_nothing(data):
    assert metrics.parse(data) is None
