"""Numbers in sentences."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hal.model.words import are, counted, measured, sized


def test_one_is_singular_and_all_else_plural():
    assert [counted(many, "device") for many in (0, 1, 2)] == ["0 devices", "1 device", "2 devices"]
    assert [counted(many, "second") for many in (1.0, 0.5, 90.0)] == ["1 second", "0.5 seconds", "90 seconds"]
    assert [are(many) for many in (0, 1, 1.0, 7)] == ["are", "is", "is", "are"]


def test_sizes_are_said_as_people_write_them():
    assert sized(80 << 30, "memory_bytes") == "80 GiB"
    assert sized(80 * 10**9, "memory_bytes") == "80 GB"
    assert sized(85520809984, "memory_bytes") == "81559 MiB"
    assert sized(400 * 10**9, "rate_bps") == "400 Gbit/s"
    assert (sized(40, "memory_bytes"), sized(0, "memory_bytes"), sized(1000, "lanes")) == ("40", "0", "1000")
    assert measured(80 << 30, "memory_bytes") == "80 GiB of memory_bytes"
    assert measured(3, "ports") == "3 ports"


_NUMBERS = (
    {"": 1}
    | {f"{p}iB": 1024**i for i, p in enumerate("KMGTPE", 1)}
    | {f"{p}B": 1000**i for i, p in enumerate("kMGTPE", 1)}
)


@given(st.integers(0, 1 << 63))
def test_a_size_in_words_is_the_number_itself(amount):
    number, _, unit = sized(amount, "memory_bytes").partition(" ")
    assert int(number) * _NUMBERS[unit] == amount
