"""The fixture ``hal_namespace``: the test's mock machine as the one that unmodified programs run on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from hal.errors import NotReady, UsageError

if TYPE_CHECKING:
    from hal_mocks.machine import Machine
    from hal_mocks.namespace.holder import Namespace


@pytest.fixture
def hal_namespace(request: pytest.FixtureRequest, hal_machine: Machine) -> Iterator[Namespace]:
    """A namespace whose /sys, /dev and hot-plug events are those of ``hal_machine``, faults included.

    ``hal_namespace.run(function, ...)`` calls a function in it, in a forked child; ``run_command(["lspci"])`` and
    ``popen`` start programs. ``@pytest.mark.hal_namespace(host="rack-1-n2")`` chooses the host of a rack. Where
    namespaces are forbidden the test is skipped, and the reason says what to do.
    """
    from hal_mocks.namespace.holder import Namespace
    from hal_mocks.namespace.room import Room
    from hal_mocks.namespace.staging import stage_machine

    mark = request.node.get_closest_marker("hal_namespace")
    words = dict(mark.kwargs) if mark is not None else {}
    host = words.pop("host", None)
    if words or (mark is not None and mark.args):
        wrong = next(iter(words), None) or repr(mark.args[0] if mark is not None else "")
        raise UsageError(f"the marker hal_namespace has no {wrong}", hint="host")
    stage = stage_machine(hal_machine, os.environ["HAL_MACHINE"], host, Room(root=""))
    try:
        namespace = Namespace(stage)
    except NotReady as error:
        pytest.skip(str(error))
    with namespace:
        yield namespace
