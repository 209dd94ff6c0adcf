"""The plugin passes the kit over a machine of files, and says of computing that it does not have it.

Every check of the kit that computes is run, and must end in ``Unsupported``: the lack is examined, not left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ClassVar

import pytest

from hal.drivers.contract import Driver
from hal.errors import Unsupported
from hal.testing.conformance import assert_error_is_for_people
from hal.testing.kinds.gpu import GpuConformance
from hal_amd.resetting import ResettingAmdDriver
from plugins.amd.tests.amd_trees import AmdMachine

COMPUTING = (
    "test_what_is_counted_never_falls",
    "test_what_is_copied_comes_back",
    "test_copies_go_into_what_is_given",
    "test_a_copy_of_another_shape_is_refused",
    "test_arrays_are_really_computed",
    "test_a_buffer_is_shared_by_dlpack_not_copied",
    "test_memory_is_counted_and_given_back",
    "test_memory_that_nobody_refers_to_is_given_back",
    "test_a_freed_buffer_is_refused",
    "test_too_much_memory_is_refused_and_less_is_not",
    "test_a_stream_runs_in_order",
    "test_a_stream_waits_for_the_event_of_another",
    "test_the_default_stream_waits_for_the_others",
    "test_time_between_events_is_never_negative",
    "test_an_event_answers_when_asked_long_enough",
    "test_work_ends_with_the_lease",
    "test_this_process_is_seen",
    "test_a_reset_ends_what_ran",
)


class TestAmd(GpuConformance):
    lacks = frozenset({"scrub", "kernel", "peer", "row-remapping", "mig"})

    @pytest.fixture
    def machine(self, tmp_path: Path) -> AmdMachine:
        return AmdMachine(tmp_path, gpus=2)

    @pytest.fixture
    def driver(self, machine: AmdMachine) -> Driver:
        driver = machine.driver()
        assert isinstance(driver, ResettingAmdDriver)
        return driver


class TestAmdPartition(TestAmd):
    """A part of a divided GPU has less: power and the way to others are the whole GPU's."""

    lacks = TestAmd.lacks | {"reset", "power-limit"}
    facets: ClassVar[dict[str, type]] = {}  # the driver resets whole GPUs

    @pytest.fixture
    def machine(self, tmp_path: Path) -> AmdMachine:
        machine = AmdMachine(tmp_path, gpus=1)
        machine.divide(0, "DPX")
        return machine


def _refused(check: Callable[..., None]) -> Callable[..., None]:
    @wraps(check)
    def refused(*args: object, **kwargs: object) -> None:
        with pytest.raises(Unsupported) as caught:
            check(*args, **kwargs)
        assert caught.value.device is not None
        assert_error_is_for_people(caught.value, caught.value.device)
        assert "ROCR_VISIBLE_DEVICES=" in str(caught.value.hint)

    return refused


for _name in COMPUTING:
    setattr(TestAmd, _name, _refused(getattr(GpuConformance, _name)))
