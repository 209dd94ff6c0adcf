from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from hal.api.folders import folders
from hal.export.environment import environment
from hal.model.kind import Kind
from hal.model.lease import AllocatedDevice, Lease


def allocated(id, kind, name, *aliases, vendor=""):
    return AllocatedDevice(id=id, kind=kind, name=name, node="n0", driver="d", aliases=aliases, vendor=vendor)


GPU = allocated("GPU-1", Kind.GPU, "gpu0", "uuid:GPU-1")
PART = allocated("MIG-2", Kind.GPU, "gpu1", "uuid:MIG-2")
NIC = allocated("rnic-0123456789abcdef", Kind.RNIC, "nic3", "rdma:mlx5_3", "netdev:eth0")


def test_nvidia_gpus_and_partitions_are_named_by_uuid():
    assert environment([GPU, PART])["CUDA_VISIBLE_DEVICES"] == "GPU-1,MIG-2"


def test_a_lease_without_gpus_shows_none():
    assert environment([NIC])["CUDA_VISIBLE_DEVICES"] == ""


def test_amd_gpus_go_to_rocm_alone():
    amd = allocated("GPU-abcd", Kind.GPU, "gpu0", "uuid:GPU-abcd", vendor="AMD")
    found = environment([amd, GPU])
    assert found["ROCR_VISIBLE_DEVICES"] == "GPU-abcd"
    assert found["CUDA_VISIBLE_DEVICES"] == "GPU-1"


def test_intel_gpus_are_only_named_where_their_ordinal_is_known():
    assert environment([allocated("x", Kind.GPU, "gpu0", "ze:2")])["ZE_AFFINITY_MASK"] == "2"
    assert "ZE_AFFINITY_MASK" not in environment([GPU])


def test_nics_are_named_for_ucx_and_nccl():
    found = environment([NIC])
    assert found["UCX_NET_DEVICES"] == "mlx5_3:1"
    assert found["NCCL_IB_HCA"] == "=mlx5_3"


def test_the_other_kinds_have_their_names():
    devices = [
        allocated("dpu-1", Kind.DPU, "dpu0", "rshim:rshim0"),
        allocated("pmem-1", Kind.PMEM, "region0", "nd:region0"),
        allocated("upmem-1-0", Kind.UPMEM, "dpu_rank0", "rank:dpu_rank0"),
        allocated("upmem-1-1", Kind.UPMEM, "dpu_rank1", "rank:dpu_rank1"),
    ]
    found = environment(devices)
    assert found["HAL_DPUS"] == "rshim0"
    assert found["HAL_PMEM_REGIONS"] == "region0"
    assert found["HAL_UPMEM_RANKS"] == "dpu_rank0,dpu_rank1"
    assert "UPMEM_PROFILE" not in found
    assert environment(devices[2:3])["UPMEM_PROFILE"] == "backend=hw,rankPath=/dev/dpu_rank0"


def test_the_lease_and_its_fence_are_there():
    lease = Lease(id="a", tenant="t", devices=(GPU,), fence=7, granted_at=0, expires_at=1, ttl_seconds=1)
    found = environment([GPU], lease)
    assert (found["HAL_LEASE"], found["HAL_FENCE"], found["HAL_DEVICES"]) == ("a", "7", "GPU-1")


def test_an_exporter_may_add_and_one_that_fails_costs_nothing(caplog):
    def fail(devices):
        raise RuntimeError("no")

    exporters = [
        SimpleNamespace(name="bad", environment=fail),
        SimpleNamespace(name="good", environment=lambda devices: {"ACME": str(len(devices))}),
    ]
    assert environment([GPU], exporters=exporters)["ACME"] == "1"
    assert "exporter bad failed" in caplog.text


def test_a_mock_machine_has_folders_of_its_own(tmp_path):
    base = {"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r", "HOME": "/h"}
    real = folders(base)
    mock = folders({**base, "HAL_MACHINE": "dgx-h100"})
    other = folders({**base, "HAL_MACHINE": "dgx-h100?seed=1"})
    assert (str(real.state), str(real.runtime)) == ("/s/hal", "/r/hal")
    assert len({real.state, mock.state, other.state}) == len({real.runtime, mock.runtime, other.runtime}) == 3
    assert folders(base, tmp_path).runtime == tmp_path / "run"


def test_the_state_folder_may_be_named_by_text():
    assert folders({}, "kept").state == Path("kept").absolute()


def test_a_relative_xdg_folder_is_ignored_as_its_specification_asks():
    """Otherwise each working directory would have a broker of its own, for the same devices."""
    base = {"HOME": "/home/somebody"}
    assert folders({**base, "XDG_STATE_HOME": "state", "XDG_RUNTIME_DIR": "run"}) == folders(base)
