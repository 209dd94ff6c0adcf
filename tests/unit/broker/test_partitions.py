"""Parts on one device: where one fits, how many fit, and which place leaves most to others."""

from __future__ import annotations

import random
from itertools import combinations

import msgspec
import pytest

from hal.broker.allocation.partitions import PartitionTable, best_placement, fits_beside, placements_of, taken_by
from hal.errors import HalError
from hal_mocks.gpu_describe import places_of
from hal_mocks.gpu_mig import partition_at, place, profiles_of
from hal_mocks.profile import load_profile
from tests.budget import examples

BOARDS = {name: load_profile(name).hosts[0].gpus[0] for name in ("dgx-a100", "dgx-h100")}
LINES = {name: tuple(profile.line for profile in profiles_of(gpu)) for name, gpu in BOARDS.items()}
H100 = PartitionTable.parse(LINES["dgx-h100"])


@pytest.mark.parametrize("board", BOARDS)
def test_a_part_fits_where_the_board_would_make_it(board):
    """Boards count slices for computing, too; the table of memory alone gives the same answers."""
    gpu, table = BOARDS[board], PartitionTable.parse(LINES[board])
    rng = random.Random(board)
    refused = 0
    for _ in range(examples(200)):
        made = []
        for _ in range(9):
            taken = taken_by(table, [f"{part.profile}@{part.start}" for part in made])
            for profile in gpu.mig:
                allowed = []
                for start in profile.placements:
                    try:
                        place(gpu, made, profile.name, start)
                    except HalError:
                        refused += 1
                    else:
                        allowed.append(start)
                assert table.fits(profile.name, taken) == tuple(allowed), (made, profile.name)
            profile = rng.choice(gpu.mig)
            starts = table.fits(profile.name, taken)
            if starts:
                made.append(partition_at(gpu, profile, rng.choice(starts)))
    assert refused


@pytest.mark.parametrize("taken", range(256))
def test_as_many_parts_fit_as_trying_all_sets_of_places_finds(taken):
    for profile in H100.profiles:
        places = [H100.footprint(profile.name, start) for start in profile.starts]
        most = max(
            count
            for count in range(len(places) + 1)
            for chosen in combinations(places, count)
            if sum(chosen) + taken
            == sum({1 << bit for each in (*chosen, taken) for bit in range(9) if each >> bit & 1})
        )
        assert H100.count_fits(profile.name, taken) == most


def test_a_small_part_is_made_where_large_ones_could_not_be():
    assert best_placement(LINES["dgx-h100"], (), "1g.10gb") == 6
    assert best_placement(LINES["dgx-h100"], ("1g.10gb@6",), "3g.40gb") == 0
    assert best_placement(LINES["dgx-h100"], ("3g.40gb@0",), "1g.10gb") == 6
    assert best_placement(LINES["dgx-h100"], ("3g.40gb@0", "1g.10gb@6"), "2g.20gb") == 4
    assert best_placement(LINES["dgx-h100"], ("3g.40gb@0",), "4g.40gb") is None


def test_no_other_place_leaves_more():
    for taken in range(256):
        for profile in H100.profiles:
            start = H100.choose(profile.name, taken)
            rooms = [H100.room(taken | H100.footprint(profile.name, s)) for s in H100.fits(profile.name, taken)]
            if start is None:
                assert not rooms
            else:
                assert H100.room(taken | H100.footprint(profile.name, start)) == max(rooms)


def test_several_parts_are_placed_together_or_not_at_all():
    starts = H100.choose_all(("1g.10gb", "3g.40gb", "1g.10gb", "2g.20gb"), 0)
    places = [H100.footprint(n, s) for n, s in zip(("1g.10gb", "3g.40gb", "1g.10gb", "2g.20gb"), starts, strict=True)]
    assert sum(places).bit_count() == sum(place.bit_count() for place in places) == 8
    assert H100.choose_all(("3g.40gb", "3g.40gb"), 0) == (0, 4)
    assert H100.choose_all(("4g.40gb", "4g.40gb"), 0) is None
    assert H100.choose_all((), 0) == ()


def test_the_media_engines_are_given_once():
    taken = taken_by(H100, ["1g.10gb+me@3"])
    assert H100.fits("1g.10gb+me", taken) == ()
    assert H100.fits("1g.10gb", taken) == (0, 1, 2, 4, 5, 6)
    assert H100.count_fits("1g.10gb+me", 0) == 1


def test_what_others_made_is_known_by_its_slices():
    assert H100.fits("3g.40gb", H100.occupied(((0, 1), (1, 2)))) == (4,)
    assert H100.fits("3g.40gb", taken_by(H100, ["1c.3g.40gb@0"])) == (4,)


def test_beside_a_part_of_unknown_size_nothing_is_made():
    assert best_placement(LINES["dgx-h100"], ("strange@0",), "1g.10gb") is None
    assert best_placement(LINES["dgx-h100"], ("1g.10gb@?",), "1g.10gb") is None


def test_a_device_tells_its_placements_and_keeps_a_place_for_a_part():
    gpu = places_of(load_profile("dgx-h100"))[BOARDS["dgx-h100"].uuid].device
    assert placements_of(gpu)["3g.40gb"] == (0, 4)
    assert fits_beside(gpu, "3g.40gb@4", ("3g.40gb@0",))
    assert not fits_beside(gpu, "3g.40gb@0", ("1g.10gb@2",))
    assert not fits_beside(gpu, "3g.40gb@1", ())
    assert not fits_beside(gpu, "3g.40gb", ())
    bare = msgspec.structs.replace(gpu, attributes={})
    assert placements_of(bare) == {}
    assert not fits_beside(bare, "3g.40gb@4", ())


@pytest.mark.parametrize("lines", [None, "1g:1:0", ("1g:1",), ("1g:x:0",), (":1:0",), ("1g:0:0",), ("1g:1:-1",), (3,)])
def test_without_a_table_nothing_is_made(lines):
    assert best_placement(lines, (), "1g") is None
