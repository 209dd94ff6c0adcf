"""Leased devices as the environment variables that software obeys.

=====================  ==============================================================================================
variable               holds
=====================  ==============================================================================================
CUDA_VISIBLE_DEVICES   UUIDs of the NVIDIA GPUs or MIG partitions (CUDA C++ Programming Guide, "CUDA Environment
                       Variables"); set to the empty text if the lease has no such GPU, so that none is visible
ROCR_VISIBLE_DEVICES   UUIDs of the AMD GPUs (ROCm, "GPU isolation techniques"); only if there is one
ZE_AFFINITY_MASK       Level Zero's ordinals of Intel GPUs; only where the driver gave an alias ``ze:N``
UCX_NET_DEVICES        ``mlx5_0:1,…`` (UCX manual); port 1, the only one of a function
NCCL_IB_HCA            ``=mlx5_0,…`` (NCCL manual; "=" asks for an exact match)
HAL_DPUS               rshim names (``rshim0``) or ids of the DPUs
HAL_PMEM_REGIONS       names of the persistent memory regions (``region0``)
HAL_UPMEM_RANKS        names of the UPMEM ranks (``dpu_rank0``)
UPMEM_PROFILE          ``backend=hw,rankPath=/dev/dpu_rank0`` (UPMEM SDK, ``dpu_alloc``); only for a single rank
HAL_LEASE, HAL_FENCE   the lease's id and fence
HAL_DEVICES            ids of all devices
=====================  ==============================================================================================
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from hal.model.kind import Kind
from hal.model.lease import AllocatedDevice, Lease

_LOG = logging.getLogger(__name__)


class EnvironmentExporter(Protocol):
    """What a plugin's exporter looks like (:class:`hal.drivers.hookspecs.Exporter`)."""

    @property
    def name(self) -> str:
        """Whose it is."""
        ...

    @property
    def environment(self) -> _Export:
        """The function that does it."""
        ...


class _Export(Protocol):
    def __call__(self, devices: Sequence[AllocatedDevice], /) -> Mapping[str, str]: ...


def environment(
    devices: Sequence[AllocatedDevice], lease: Lease | None = None, exporters: Iterable[EnvironmentExporter] = ()
) -> dict[str, str]:
    """Return the variables for some devices; those of a plugin's exporters win over ours.

    An exporter that raises is logged and leaves the others alone.
    """
    found: dict[str, str] = {}
    found.update(_gpus([device for device in devices if device.kind is Kind.GPU]))
    rdma = [_alias(device, "rdma") or device.name for device in devices if device.kind is Kind.RNIC]
    if rdma:
        found["UCX_NET_DEVICES"] = ",".join(f"{name}:1" for name in rdma)
        found["NCCL_IB_HCA"] = "=" + ",".join(rdma)
    dpus = [_alias(device, "rshim") or device.id for device in devices if device.kind is Kind.DPU]
    if dpus:
        found["HAL_DPUS"] = ",".join(dpus)
    regions = [_alias(device, "nd") or device.name for device in devices if device.kind is Kind.PMEM]
    if regions:
        found["HAL_PMEM_REGIONS"] = ",".join(regions)
    ranks = [_alias(device, "rank") or device.name for device in devices if device.kind is Kind.UPMEM]
    if ranks:
        found["HAL_UPMEM_RANKS"] = ",".join(ranks)
    if len(ranks) == 1:
        found["UPMEM_PROFILE"] = f"backend=hw,rankPath=/dev/{ranks[0]}"
    found["HAL_DEVICES"] = ",".join(device.opened_as or device.id for device in devices)
    if lease is not None:
        found["HAL_LEASE"] = lease.id
        found["HAL_FENCE"] = str(lease.fence)
    for exporter in exporters:
        try:
            found.update(_variables(exporter.environment(devices)))
        except Exception as error:  # a guard: a plugin's code, and one that fails must not cost the others
            _LOG.warning("exporter %s failed: %s: %s", exporter.name, type(error).__name__, error)
    return found


def _variables(exported: Mapping[str, str]) -> dict[str, str]:
    """Return what an exporter gave, as text; raises for what no environment can hold, or would run in a shell."""
    found = {str(name): str(value) for name, value in exported.items()}
    for name, value in found.items():
        if not (name.isascii() and name.isidentifier()):
            raise ValueError(f"{name!r} is no name of a variable")
        if "\0" in value:
            raise ValueError(f"the value of {name} has a NUL in it")
    return found


def _gpus(gpus: Sequence[AllocatedDevice]) -> dict[str, str]:
    amd = [device for device in gpus if device.vendor.lower().startswith(("amd", "advanced micro"))]
    intel = [device for device in gpus if _alias(device, "ze") is not None]
    nvidia = [device for device in gpus if device not in amd and device not in intel]
    found = {
        "CUDA_VISIBLE_DEVICES": ",".join(device.opened_as or _alias(device, "uuid") or device.id for device in nvidia)
    }
    if amd:
        found["ROCR_VISIBLE_DEVICES"] = ",".join(_alias(device, "uuid") or device.id for device in amd)
    if intel:
        found["ZE_AFFINITY_MASK"] = ",".join(str(_alias(device, "ze")) for device in intel)
    return found


def _alias(device: AllocatedDevice, space: str) -> str | None:
    prefix = space + ":"
    return next((name[len(prefix) :] for name in device.aliases if name.startswith(prefix)), None)
