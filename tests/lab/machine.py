"""One boot of the guest: the QEMU process, its monitor, the agent, and their end."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import agent, hardware, initramfs
from tests.lab.guest import Guest, GuestError
from tests.lab.needs import CHECKOUT, Host
from tests.lab.qmp import Qmp, QmpError

_QUIET_KERNEL = "quiet loglevel=4 panic=-1 net.ifnames=0 mitigations=off nokaslr tsc=reliable audit=0"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_END_SECONDS = 5.0


class Machine:
    """A running guest. Leaving the context kills it, as a power failure would.

    ``folder`` keeps the console and QEMU's own words as ``NAME.console.log`` and ``NAME.qemu.log``.
    """

    def __init__(self, host: Host, name: str, folder: Path, images: Path) -> None:
        self.host = host
        self.name = name
        self.console = folder / f"{name}.console.log"
        self._words = folder / f"{name}.qemu.log"
        self._images = images
        # A socket's path may have 108 bytes, which a checkout's own may exceed.
        self._sockets = Path(tempfile.mkdtemp(prefix="hal-lab-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._guest: Guest | None = None
        self._qmp: Qmp | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.power_off()

    @property
    def guest(self) -> Guest:
        """The agent."""
        if self._guest is None:
            raise GuestError(f"{self.name} is not running")
        return self._guest

    @property
    def qmp(self) -> Qmp:
        """QEMU's monitor."""
        if self._qmp is None:
            raise QmpError(f"{self.name} is not running")
        return self._qmp

    @property
    def processor_seconds(self) -> float:
        """Processor time that QEMU has used: on a busy host it tells more than the clock (proc(5), ``stat``)."""
        if self._process is None:
            return 0.0
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def power_off(self) -> None:
        """End it without a word to the guest: nothing is shut down, synchronised or flushed. Idempotent."""
        for connection in (self._guest, self._qmp):
            if connection is not None:
                connection.close()
        self._guest = self._qmp = None
        if self._process is not None:
            self._process.kill()
            self._process.wait(_END_SECONDS)
            self._process = None
        shutil.rmtree(self._sockets, ignore_errors=True)

    def start(self) -> None:
        """Boot, and wait for the agent."""
        first = self._sockets / "initramfs"
        python = [str(self.host.python), "-I", "-S", "-u", str(CHECKOUT / "tests/lab/agent.py")]
        # The agent is a child of the shell, not the first process: that one's death is a panic that hides the cause.
        last = [
            "/bin/sh",
            "-c",
            f"{' '.join(python)}; echo the agent ended with $?; sleep 1; echo o >/proc/sysrq-trigger",
        ]
        first.write_bytes(initramfs.build(self.host.busybox, self.host.modules, last))
        command = [
            # However we die, it dies with us.
            "setpriv", "--pdeathsig", "KILL",
            self.host.qemu, "-accel", "tcg,thread=multi", "-nodefaults", "-display", "none", "-no-reboot",
            *hardware.arguments(self._images),
            "-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
            "-device", "virtio-9p-pci,fsdev=host,mount_tag=host,bus=pcie.0",
            "-device", "virtio-serial-pci,bus=pcie.0",
            "-chardev", f"socket,id=agent,path={self._sockets}/agent,server=on,wait=off",
            "-device", f"virtserialport,chardev=agent,name={agent.PORT}",
            "-qmp", f"unix:{self._sockets}/qmp,server=on,wait=off",
            "-serial", f"file:{self.console}",
            "-kernel", str(self.host.kernel), "-initrd", str(first),
            "-append", f"console=ttyS0 {_QUIET_KERNEL}",
        ]  # fmt: skip
        with self._words.open("wb") as words:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=words, stderr=words)
        try:
            self._qmp = Qmp(self._sockets / "qmp")
            self._guest = Guest(self._sockets / "agent", self._environ(), str(CHECKOUT))
        except (GuestError, QmpError) as error:
            said = self._words.read_text(errors="replace").strip()
            shown = self.console.read_text(errors="replace")[-2000:] if self.console.exists() else ""
            raise GuestError(f"{error}\n{said}\n{shown}".strip()) from error

    def _environ(self) -> dict[str, str]:
        return {
            "PATH": f"{self.host.python.parent}:{_PATH}",
            "HOME": "/run/lab",
            "TMPDIR": "/run/lab",
            "XDG_RUNTIME_DIR": "/run/lab",
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": "/run/lab/hypothesis",
            **({"HAL_TEST_PROFILE": profile} if (profile := os.environ.get("HAL_TEST_PROFILE")) else {}),
        }
