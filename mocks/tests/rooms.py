"""Machines to be looked at from within, for tests that leave them as they are or heal what they broke."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hal_mocks.machine import Machine, open_machine
from hal_mocks.namespace.holder import Namespace
from hal_mocks.namespace.room import Room
from hal_mocks.namespace.staging import machine_name, stage_machine


class Inside:
    """A machine, and the namespace in which it is the real one."""

    def __init__(self, machine: Machine, namespace: Namespace) -> None:
        self.machine = machine
        self.namespace = namespace

    def output(self, *command: str | Path) -> str:
        """Return what a program writes; it must succeed."""
        done = self.namespace.run_command(command)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def rooms(folder: Path) -> Iterator[Callable[[str], Inside]]:
    """Give machines by the names of their profiles, each made once."""
    made: dict[str, Inside] = {}
    with ExitStack() as stack:

        def make(profile: str) -> Inside:
            if profile not in made:
                name = machine_name(profile, str(folder / profile), 0, "real")
                machine = open_machine({"HAL_MACHINE": name})
                assert machine is not None
                namespace = stack.enter_context(Namespace(stage_machine(machine, name, None, Room(root=""))))
                made[profile] = Inside(machine, namespace)
            return made[profile]

        yield make
