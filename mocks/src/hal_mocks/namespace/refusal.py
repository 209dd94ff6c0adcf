"""Why a kernel refuses namespaces, and what to do about it."""

from __future__ import annotations

import errno
from pathlib import Path

from hal.errors import NotReady

ELSEWHERE = "without namespaces: hal-mock render FOLDER, and HAL_SYSFS_ROOT=FOLDER/HOST"


def refusal(error: OSError, proc: Path = Path("/proc")) -> NotReady:
    """Return the error for a namespace that could not be made or furnished: what forbids it, and who can allow it."""
    cause, remedy = _cause(error, proc)
    return NotReady(
        f"namespaces are forbidden here: {cause}",
        during="run",
        hint=f"{remedy}; {ELSEWHERE}" if remedy else ELSEWHERE,
    )


def _cause(error: OSError, proc: Path) -> tuple[str, str]:
    limits = {name: _number(proc / "sys/user" / f"max_{name}_namespaces") for name in ("user", "mnt", "net")}
    for name, limit in limits.items():
        if limit == 0:
            return (
                f"user.max_{name}_namespaces is 0",
                f"as root: sysctl -w user.max_{name}_namespaces=15000",
            )
    if _number(proc / "sys/kernel/unprivileged_userns_clone") == 0:
        return "kernel.unprivileged_userns_clone is 0", "as root: sysctl -w kernel.unprivileged_userns_clone=1"
    if _number(proc / "sys/kernel/apparmor_restrict_unprivileged_userns") == 1:
        return (
            "AppArmor restricts the user namespaces of ordinary users",
            "as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or a profile with 'userns,'",
        )
    if error.errno == errno.ENOSPC:
        return "there are as many namespaces as there may be", "as root: raise user.max_user_namespaces"
    if _status(proc, "Seccomp") == "2":
        return (
            "a seccomp filter (that of a container?) refuses them",
            "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined --cap-add SYS_ADMIN",
        )
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{where}", ""


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _status(proc: Path, name: str) -> str:
    try:
        for line in (proc / "self/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return value.strip()
    except OSError:
        pass
    return ""
