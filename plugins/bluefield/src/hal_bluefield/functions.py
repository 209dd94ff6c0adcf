"""Virtual functions of a card (SR-IOV): ``sriov_totalvfs`` and ``sriov_numvfs`` of its NIC functions."""

from __future__ import annotations

from pathlib import Path

from hal.errors import AccessDenied, DeviceBusy, DeviceGone, InvalidArgument


class VirtualFunctions:
    """The counts of all NIC functions of one card; functions are filled one after the other."""

    def __init__(self, folders: tuple[Path, ...], device: str) -> None:
        self._folders = folders
        self._device = device

    def most(self, step: str) -> int:
        """Return how many there can be."""
        return sum(self._read(folder / "sriov_totalvfs", step) for folder in self._folders)

    def count(self, step: str) -> int:
        """Return how many there are."""
        return sum(self._read(folder / "sriov_numvfs", step) for folder in self._folders)

    def set(self, count: int, step: str) -> None:
        """Make so many. The kernel wants to pass through none on the way from one number to another."""
        most = self.most(step)
        if isinstance(count, bool) or not 0 <= count <= most:
            raise InvalidArgument(
                f"{count} virtual functions of at most {most}", device=self._device, during=step, hint=f"0 to {most}"
            )
        now = self.count(step)
        if now == count:
            return
        if now and count:
            raise DeviceBusy(
                f"there are {now}; the kernel changes their number only from and to none",
                device=self._device,
                during=step,
                hint="set_vf_count(0) first",
            )
        left = count
        for folder in self._folders:
            here = min(left, self._read(folder / "sriov_totalvfs", step))
            if here != self._read(folder / "sriov_numvfs", step):
                self._write(folder / "sriov_numvfs", here, step)
            left -= here

    def _read(self, path: Path, step: str) -> int:
        try:
            return int(path.read_text().strip() or "0")
        except FileNotFoundError:
            if path.parent.is_dir():
                return 0  # a function without SR-IOV has neither file
            raise DeviceGone(
                f"{path.parent} is gone", device=self._device, during=step, hint="hal-probe doctor"
            ) from None
        except (OSError, ValueError) as error:
            raise DeviceGone(f"{path}: {error}", device=self._device, during=step, hint="hal-probe doctor") from None

    def _write(self, path: Path, count: int, step: str) -> None:
        try:
            path.write_text(f"{count}\n")
        except PermissionError as error:
            raise AccessDenied(
                f"{path}: {error.strerror}", device=self._device, during=step, hint="run the agent as root"
            ) from None
        except OSError as error:
            raise DeviceBusy(
                f"the kernel refuses {count} virtual functions: {error.strerror}",
                device=self._device,
                during=step,
                hint="give back those in use (a virtual machine?), and look at dmesg",
            ) from None
