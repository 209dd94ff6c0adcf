"""Running commands: tools of the host, and programs on the card's Arm cores over SSH. Each keeps a deadline."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from hal.errors import AccessDenied, DeadlineExceeded, DeviceGone, Unsupported
from hal.interfaces.deadline import Deadline
from hal_bluefield.config import CardConfig

_SSH_FAILED = 255
_ENDING_SECONDS = 1.0
_LONGEST_FOLDER = 48


class Result(msgspec.Struct, frozen=True):
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """Return the last line of its complaint."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1].strip() if lines else f"exit status {self.code}"


def run_command(
    argv: Sequence[str],
    *,
    device: str,
    step: str,
    deadline: Deadline,
    hint: str,
    feed: str | None = None,
) -> Result:
    """Run a program without a shell; ``feed`` is its input.

    Raises ``Unsupported`` if it is not installed, ``DeadlineExceeded`` after killing it at the deadline.
    """
    deadline.check(device=device, during=step)
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL if feed is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        raise Unsupported(f"{argv[0]} is not installed", device=device, during=step, hint=hint) from None
    except PermissionError as error:
        raise AccessDenied(f"{argv[0]}: {error.strerror}", device=device, during=step, hint=hint) from None
    with process:
        try:
            out, err = process.communicate(feed, timeout=deadline.timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            try:  # a child of the killed one may still hold its output open: it is not waited for
                process.communicate(timeout=_ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                for pipe in (process.stdout, process.stderr):
                    if pipe is not None:
                        pipe.close()
            raise DeadlineExceeded(
                f"{argv[0]} did not answer in time", device=device, during=step, hint="look whether the card is up"
            ) from None
    return Result(process.returncode, out, err)


class Shell(Protocol):
    """Runs programs on a card's cores."""

    def run(self, argv: Sequence[str], *, step: str, deadline: Deadline, feed: str | None = None) -> Result:
        """Run one program; raises ``DeviceGone`` if the card does not answer."""
        ...


class LocalShell:
    """For a driver that runs on the card itself."""

    def __init__(self, device: str, *, sudo: bool) -> None:
        self._device = device
        self._sudo = ["sudo", "-n"] if sudo else []

    def run(self, argv: Sequence[str], *, step: str, deadline: Deadline, feed: str | None = None) -> Result:
        """Run one program here."""
        return run_command(
            [*self._sudo, *argv],
            device=self._device,
            step=step,
            deadline=deadline,
            hint=f"install {argv[0]} on the card",
            feed=feed,
        )


class SshShell:
    """OpenSSH's client, in batch mode, its host key verified.

    One connection serves the commands of all processes of the user, and ends by itself ten seconds after the last.
    """

    def __init__(self, device: str, card: CardConfig, environ: Mapping[str, str]) -> None:
        self._device = device
        self._target = card.ssh
        self._sudo = ["sudo", "-n"] if card.sudo else []
        self._options = [
            "-o", "BatchMode=yes",
            "-o", "StrictHostKeyChecking=yes",
            "-o", "LogLevel=ERROR",
            "-p", str(card.ssh_port),
        ]  # fmt: skip
        if card.ssh_key:
            self._options += ["-i", card.ssh_key, "-o", "IdentitiesOnly=yes"]
        if card.ssh_known_hosts:
            self._options += ["-o", f"UserKnownHostsFile={card.ssh_known_hosts}"]
        folder = _socket_folder(environ)
        if folder is not None:
            self._options += ["-o", "ControlMaster=auto", "-o", f"ControlPath={folder}/%C", "-o", "ControlPersist=10"]

    def run(self, argv: Sequence[str], *, step: str, deadline: Deadline, feed: str | None = None) -> Result:
        """Run one program on the card; its arguments reach it as they are."""
        seconds = deadline.timeout
        patience = max(1, min(30, int(seconds if seconds is not None else 30)))
        result = run_command(
            [
                "ssh",
                *self._options,
                "-o",
                f"ConnectTimeout={patience}",
                "--",
                self._target,
                shlex.join((*self._sudo, *argv)),
            ],
            device=self._device,
            step=step,
            deadline=deadline,
            hint="apt install openssh-client",
            feed=feed,
        )
        if result.code == _SSH_FAILED:
            raise DeviceGone(
                f"its Arm cores do not answer at {self._target}: {result.complaint}",
                device=self._device,
                during=step,
                hint=f"ssh {shlex.join(self._options[:8])} {self._target} true; see whether the card has booted",
            )
        return result


def shell_of(device: str, card: CardConfig, environ: Mapping[str, str]) -> Shell | None:
    """Return the way to a card's cores, or None if none is configured."""
    if card.shell == "local":
        return LocalShell(device, sudo=card.sudo)
    return SshShell(device, card, environ) if card.ssh else None


def _socket_folder(environ: Mapping[str, str]) -> str | None:
    """Return where connections are shared, a folder of the user's own; None if there is none that is safe and short.

    A socket's path has 108 bytes at most, of which ssh takes 58 for its name.
    """
    uid = os.getuid()
    for base in (environ.get("XDG_RUNTIME_DIR", ""), os.path.join(tempfile.gettempdir(), f"hal-{uid}")):
        folder = os.path.join(base, "hal-ssh")
        if not os.path.isabs(folder) or len(folder) > _LONGEST_FOLDER:
            continue
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            status = os.stat(folder, follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISDIR(status.st_mode) and status.st_uid == uid and not status.st_mode & 0o077:
            return folder
    return None
