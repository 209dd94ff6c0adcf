"""A server whose journal's disk is full: claims are refused cleanly, the rest goes on, a death changes nothing.

The disk is a small file system in memory, in a namespace of the test's own; as a program of its own this file is what
runs there: ``python -m tests.flows.test_killed_disk FOLDER``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.test_killed_parts import ROOT, Serving


def test_a_server_on_a_full_disk_refuses_claims_keeps_leases_and_works_again_with_room(doors, mock, tmp_path):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], check=False).returncode:
        pytest.skip("no user namespace can be made here, and so no small disk: unshare -Urm true fails")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = 'mount -t tmpfs -o size=12m none "$1" && exec "$0" -m tests.flows.test_killed_disk "$1"'
    environ = {**doors.environ, **mock("dgx-h100"), "PYTHONWARNINGS": "default"}
    words = ["unshare", "-Urm", "sh", "-c", mount, sys.executable, str(folder)]
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def story(folder: Path) -> None:
    from hal.api.ask import make_claim
    from hal.broker import command as c
    from hal.errors import JournalError
    from tests.flows.chaos_hooks import travel
    from tests.flows.chaos_reader import follow
    from tests.unit.broker.test_disk_full import fill

    server = Serving(folder, dict(os.environ))
    acknowledged = {}

    def claim(name, **words):
        (answer,) = client.submit([make_claim("rnic", id=name, ttl_seconds=600.0, **words)])
        assert isinstance(answer, c.Granted), answer
        acknowledged[name] = answer.lease.fence

    def claim_until_full():
        """Small claims, each of which says much, so that the end is soon there."""
        for turn in range(400):
            name = f"{os.getpid()}-{len(acknowledged)}-{turn}"
            try:
                claim(name, where=f"name != '{'x' * 3000}'", fraction=0.01)
            except JournalError as error:
                return error
        raise AssertionError("the disk is never full")

    travel(folder, 0.0)
    with server.client() as client:
        for number in range(3):
            claim(f"before{number}")
        ballast = fill(folder)
        error = claim_until_full()
        assert "make room" in str(error)
        for _ in range(3):
            client.renew("before0")
        client.release("before1")
        del acknowledged["before1"]
        assert {lease.id: lease.fence for lease in client.list()} == acknowledged
        with pytest.raises(JournalError, match="make room"):
            client.submit([make_claim("gpu", count=8, id="still")])
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        server.start()
    with server.client() as client:
        assert {lease.id: lease.fence for lease in client.list()} == acknowledged, "it starts on a full disk, too"
        client.renew("before0")
        client.release("before2")
        del acknowledged["before2"]
        ballast.unlink()
        claim("after")
        assert {lease.id: lease.fence for lease in client.list()} == acknowledged
        assert client.verify_audit().ok
        travel(folder, 700.0)
        assert not client.list(), "and time ends them"
    assert server.end() == 0
    assert not follow(folder / "state/journal.sqlite", quiet=True).live


if __name__ == "__main__":
    story(Path(sys.argv[1]))
