"""Mock hardware for hal, active only when ``HAL_MACHINE`` names a profile. This module only registers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from hal.drivers.contract import Context, Driver, DriverFactory, HostRoot
from hal.drivers.hookspecs import hookimpl
from hal.drivers.match import Match
from hal.model.kind import Kind

if TYPE_CHECKING:
    from hal_mocks.machine import Machine

_ACTIVE = (Match(environment="HAL_MACHINE"),)


def _machine(context: Context) -> Machine:
    from hal_mocks.machine import open_machine

    machine = open_machine(context.environ)
    if machine is None:
        from hal.errors import NotReady

        raise NotReady("HAL_MACHINE is not set", hint="HAL_MACHINE=dgx-h100 hal-probe")
    return machine


def _gpu(context: Context) -> Driver:
    from hal_mocks.gpu import MockGpuDriver

    return MockGpuDriver(_machine(context))


def _dpu(context: Context) -> Driver:
    from hal_mocks.dpu import MockDpuDriver

    return MockDpuDriver(_machine(context))


def _rnic(context: Context) -> Driver:
    from hal_mocks.rnic import MockRnicDriver

    return MockRnicDriver(_machine(context))


def _pmem(context: Context) -> Driver:
    from hal_mocks.pmem import MockPmemDriver

    return MockPmemDriver(_machine(context))


def _upmem(context: Context) -> Driver:
    from hal_mocks.upmem import MockUpmemDriver

    return MockUpmemDriver(_machine(context))


def _hosts(environ: Mapping[str, str]) -> Sequence[HostRoot]:
    from hal_mocks.sysfs import host_roots

    return host_roots(environ)


@hookimpl
def hal_drivers() -> Iterable[DriverFactory]:
    """One driver a kind, and the tree that host discovery reads instead of this machine's."""
    for name, kind, create in (
        ("mock-gpu", Kind.GPU, _gpu),
        ("mock-dpu", Kind.DPU, _dpu),
        ("mock-rnic", Kind.RNIC, _rnic),
        ("mock-pmem", Kind.PMEM, _pmem),
        ("mock-upmem", Kind.UPMEM, _upmem),
    ):
        yield DriverFactory(
            name=name,
            kinds=(kind,),
            create=create,
            matches=_ACTIVE,
            priority=50,
            hosts=_hosts if kind is Kind.GPU else None,
        )
