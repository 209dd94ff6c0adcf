"""The wall clock jumps, the machine sleeps: a lease ends neither early nor late."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from hal.api.ask import make_claim
from hal.broker import command as c
from tests.flows.chaos_hooks import travel
from tests.flows.chaos_reader import follow
from tests.flows.chaos_serve import set_wall_clock
from tests.flows.test_killed_parts import ROOT, serving, until

__all__ = ["serving"]
DAY = 86_400.0


def test_leases_end_neither_early_nor_late_however_the_wall_clock_jumps(serving, mock, tmp_path):
    folder = tmp_path / "served"
    server = serving(wall=0.0, **mock("dgx-h100"))
    with server.client() as client:
        (answer,) = client.submit([make_claim("gpu", id="long", ttl_seconds=600.0)])
        (short,) = client.submit([make_claim("gpu", id="short", ttl_seconds=100.0)])
        for jump in (30 * DAY, -30 * DAY):
            set_wall_clock(folder, jump)
            assert {lease.id for lease in client.list()} == {"long", "short"}, "nobody's time is over"
            assert client.renew("long").expires_at - answer.lease.expires_at < DAY
        travel(folder, 105.0)
        assert [lease.id for lease in client.list()] == ["long"], "and it does not live longer"
        (late,) = client.submit([make_claim("gpu", id="late", ttl_seconds=600.0)])
        assert late.lease.fence > short.lease.fence > answer.lease.fence
    for jump in (-30 * DAY, 30 * DAY):
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        set_wall_clock(folder, jump)
        server.start()
        with server.client() as client:
            assert [lease.id for lease in client.list()] == ["long", "late"], "a server that starts under another time"
            assert client.renew("late").expires_at - late.lease.expires_at < DAY
    with server.client() as client:
        travel(folder, 700.0)
        until(lambda: not client.list())
        (after,) = client.submit([make_claim("gpu", id="after", count=8)])
        assert isinstance(after, c.Granted)
    assert server.end() == 0
    live = follow(folder / "state/journal.sqlite").live
    assert list(live) == ["after"]


SAVES = """
import os, signal, sys, time
OUT = open(os.environ["OUT"], "a", buffering=1)
def leave(*_):
    time.sleep(0.3)
    print("saved", file=OUT)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("started", file=OUT)
while True: signal.pause()
"""


@pytest.mark.parametrize("jump", [30 * DAY, -30 * DAY])
def test_a_program_has_the_grace_it_was_promised_by_whatever_the_wall_clock_says(serving, mock, tmp_path, jump):
    server = serving(**mock("dgx-h100"))
    out = tmp_path / "out"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    set_wall_clock(elsewhere, jump)
    words = [sys.executable, "-m", "tests.flows.chaos_serve", str(elsewhere), "run", "gpu", "--grace", "5"]
    run = subprocess.Popen(
        [*words, "--devices", "any", "--", sys.executable, "-c", SAVES],
        cwd=ROOT,
        env={**server.environ, "HAL_SERVER": str(server.socket), "OUT": str(out)},
        stderr=subprocess.PIPE,
        text=True,
    )
    with server.client() as client:
        until(lambda: out.exists() and "started" in out.read_text())
        device = client.list()[0].devices[0].id
        client.drain(device, "firmware")
        _, said = run.communicate(timeout=60)
        assert "saved" in out.read_text(), said
        assert "within 5 s" in said
        assert not client.list()
    assert server.end() == 0


SLEEPER = """
import json, sys
from hal.api.opening import open_broker
with open_broker(state=sys.argv[1]) as broker:
    for id, ttl in json.loads(sys.argv[2]).items():
        broker.claim("gpu", id=id, ttl_seconds=ttl)
    print(json.dumps([lease.id for lease in broker.list()]))
"""


def test_while_the_machine_sleeps_time_goes_on(mock, tmp_path):
    """A time namespace in which CLOCK_BOOTTIME is a day ahead, as after a day of suspend; the boot is the same."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-UrT", "true"], check=False).returncode:
        pytest.skip("no time namespace can be made here: unshare -UrT true fails")
    state = tmp_path / "state"

    def opened(claims, *ahead):
        words = [*ahead, sys.executable, "-c", SLEEPER, str(state), json.dumps(claims)]
        done = subprocess.run(
            words, env={**os.environ, **mock("dgx-h100")}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert opened({"hour": 3600.0, "week": 7 * DAY}) == ["hour", "week"]
    day = ["unshare", "-UrT", "--fork", f"--boottime={int(DAY)}"]
    assert opened({}, *day) == ["week"]
    live = follow(state / "journal.sqlite").live
    assert list(live) == ["week"]
    assert live["week"]["state"] == "prepared"
