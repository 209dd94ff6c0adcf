"""This machine, from sysfs alone: PCI, NUMA, NICs, RDMA, NVMe, persistent memory, CXL, UPMEM, BlueField; snapshots."""
