"""Unpack a snapshot without trusting it."""

from __future__ import annotations

import os
import stat

from hal.errors import DriverError

_MOST_ENTRIES = 500_000
_MOST_BYTES = 512 << 20


def cache_folder() -> str:
    """Return the folder in which unpacked snapshots live: the user's own, private to them."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(base, "hal", "snapshots")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    import tempfile

    folder = os.path.join(tempfile.gettempdir(), f"hal-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise DriverError(
            f"{folder} belongs to somebody else", during="unpack", hint="set XDG_CACHE_HOME to a folder of your own"
        )
    return folder


def unpack(path: str) -> str:
    """Return a folder with the contents of a snapshot, unpacked at most once for the same contents.

    Refuses, with :class:`~hal.errors.DriverError`, absolute names, names and links that lead outside, devices, pipes,
    hard links, and archives larger than 512 MiB or half a million entries once unpacked.
    """
    import hashlib

    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError as error:
        raise _refusal(path, error.strerror or "cannot be read") from None
    folder = os.path.join(cache_folder(), digest)
    if os.path.isdir(folder):
        return folder
    import shutil
    import tempfile

    scratch = tempfile.mkdtemp(prefix=digest + ".", dir=os.path.dirname(folder))
    try:
        _extract(path, scratch)
        try:
            os.rename(scratch, folder)
        except OSError:
            if not os.path.isdir(folder):
                raise
            shutil.rmtree(scratch)  # somebody else was faster; the contents are the same
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return folder


def _extract(path: str, folder: str) -> None:
    import tarfile
    import zlib

    made = {""}
    links: set[str] = set()
    left_bytes = _MOST_BYTES
    try:
        with tarfile.open(path, "r:*") as archive:
            for number, member in enumerate(archive):
                if number >= _MOST_ENTRIES:
                    raise _refusal(path, "too many entries")
                name = _safe_name(path, member.name)
                parent = name.rpartition("/")[0]
                _make_folders(path, folder, parent, made, links)
                target = os.path.join(folder, name)
                if member.isdir():
                    _make_folders(path, folder, name, made, links)
                elif name in made or name in links or os.path.lexists(target):
                    raise _refusal(path, f"{name} occurs twice")
                elif member.issym():
                    _check_link(path, parent, member.linkname)
                    os.symlink(member.linkname, target)
                    links.add(name)
                elif member.isreg():
                    left_bytes -= member.size
                    if left_bytes < 0:
                        raise _refusal(path, "too large")
                    contents = archive.extractfile(member)
                    data = contents.read() if contents is not None else b""
                    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
                    with os.fdopen(descriptor, "wb") as file:
                        file.write(data)
                        os.fchmod(descriptor, 0o444 if member.mode & 0o444 else 0)
                else:
                    raise _refusal(path, f"{name} is neither file, folder nor link")
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise _refusal(path, f"not a whole archive ({error})") from None


def _safe_name(path: str, name: str) -> str:
    parts = name.removeprefix("./").rstrip("/").split("/")
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise _refusal(path, f"{name!r} leads outside")
    return "/".join(part for part in parts if part not in ("", "."))


def _make_folders(path: str, folder: str, name: str, made: set[str], links: set[str]) -> None:
    if name in made:
        return
    if name in links:
        raise _refusal(path, f"{name} is a link and a folder")
    _make_folders(path, folder, name.rpartition("/")[0], made, links)
    os.mkdir(os.path.join(folder, name), 0o755)
    made.add(name)


def _check_link(path: str, parent: str, target: str) -> None:
    from hal.host.missing import ABSENT_LINK

    if target.startswith(ABSENT_LINK):
        return
    depth = len(parent.split("/")) if parent else 0
    for part in target.split("/"):
        if part == "..":
            depth -= 1
        elif part not in ("", "."):
            depth += 1
        if depth < 0:
            raise _refusal(path, f"a link in {parent or 'the top'} leads outside")
    if target.startswith("/") and not target.startswith("/sys/"):
        raise _refusal(path, f"a link in {parent or 'the top'} leads outside")


def _refusal(path: str, why: str) -> DriverError:
    return DriverError(f"{path}: {why}", during="unpack", hint="make a new one with hal-probe snapshot")
