"""What is written of a region in a file: its size in the variable, and its label in two slots, one of them right."""

from __future__ import annotations

import os

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from hal_pmem.file_label import Label, read_label, write_label
from hal_pmem.file_setup import parse_size

SIZE = 8 << 20


@settings(max_examples=40, deadline=None)
@given(place=st.integers(0, 1000), flip=st.integers(1, 255), changes=st.integers(2, 5))
def test_a_label_with_any_byte_wrong_leaves_the_one_before(tmp_path_factory, place, flip, changes):
    descriptor = os.open(tmp_path_factory.mktemp("label") / "label", os.O_RDWR | os.O_CREAT)
    try:
        labels = [Label(cookie=f"{number:016x}", size_bytes=SIZE, changes=number) for number in range(changes)]
        for label in labels:
            write_label(descriptor, label)
        assert read_label(descriptor) == labels[-1]
        slot = (changes - 1) % 2 * (512 << 10)
        length = 24 + len(msgspec.json.encode(labels[-1]))
        place = slot + place % length
        (byte,) = os.pread(descriptor, 1, place)
        os.pwrite(descriptor, bytes([byte ^ flip]), place)
        assert read_label(descriptor) == labels[-2]
    finally:
        os.close(descriptor)


@given(number=st.integers(1, 1 << 30), unit=st.sampled_from(["", "K", "M", "G", "k", "MiB"]))
def test_sizes_are_powers_of_1024(number, unit):
    factor = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[unit[:1].lower()]
    assert parse_size(f"{number}{unit}") == number * factor
