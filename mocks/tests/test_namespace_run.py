"""``hal-mock run`` as a user meets it: real processes, real signals, a real terminal, rights that are missing."""

from __future__ import annotations

import errno
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import hal_mocks
from hal.errors import NotReady
from hal_mocks.namespace.refusal import refusal
from hal_mocks.sysfs import host_roots

HAL_MOCK = str(Path(sys.executable).with_name("hal-mock"))
SMALL = "bluefield-host"
NOBODY = 65534


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tmp_path_factory.mktemp("machine")


@pytest.fixture
def start(state, tmp_path):
    def call(*command: str, options: tuple[str, ...] = (), **more: object) -> subprocess.Popen[str]:
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        line = [HAL_MOCK, "run", "--state", str(state), *options, SMALL, "--", *command]
        return subprocess.Popen(line, **{**given, **more})

    return call


@pytest.fixture
def run(start):
    def call(*command: str, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
        with start(*command, options=options) as process:
            out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    return call


def until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        select.select([], [], [], 0.01)


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_the_exit_status_is_the_commands(run, status):
    assert run("sh", "-c", f"exit {status}")[0] == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_a_command_ended_by_a_signal_gives_128_and_its_number(run, number):
    assert run("sh", "-c", f"kill -{int(number)} $$")[0] == 128 + number


def test_a_command_that_is_not_there_gives_127_and_one_that_is_no_program_126(run, tmp_path):
    code, _, err = run("no-such-command")
    assert (code, err) == (127, "hal-mock: no-such-command: No such file or directory\n")
    (tmp_path / "text").write_text("text")
    assert run(str(tmp_path / "text"))[0] == 126


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_hal_mock_reaches_the_command(start, number):
    script = f"trap 'echo got; exit 7' {int(number)}; echo ready; while :; do sleep 0.05; done"
    with start("sh", "-c", script) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == ("got\n", 7)


def test_the_command_does_not_outlive_hal_mock_nor_leave_a_zombie(start):
    with start("sh", "-c", "echo $$; exec sleep 60") as process:
        child = int(process.stdout.readline())
        process.kill()
        process.wait(timeout=30)
        until(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2])


def test_a_stopped_command_stops_hal_mock_and_both_go_on(start):
    with start("sh", "-c", "echo ready; kill -STOP $$; echo on") as process:
        assert process.stdout.readline() == "ready\n"
        found, status = os.waitpid(process.pid, os.WUNTRACED)
        assert (found, os.WIFSTOPPED(status)) == (process.pid, True)
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == ("on\n", 0)


def test_control_c_on_a_terminal_interrupts_the_command_once(state):
    wait = "n=0; while [ $n -lt 20 ]; do sleep 0.05; n=$((n+1)); done"
    script = f"trap 'echo int' INT; stty -a | head -1; echo ready; {wait}; echo end"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(HAL_MOCK, [HAL_MOCK, "run", "--state", str(state), SMALL, "--", "sh", "-c", script])
    said = b""
    interrupted = False
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # EIO: nobody has the other end open any more
            break
        if not part:
            break
        said += part
        if b"ready" in said and not interrupted:
            interrupted = True
            os.write(terminal, b"\x03")
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert said.count(b"int\r\n") == 1
    assert b"end" in said


def test_the_state_of_a_machine_nobody_keeps_is_removed(tmp_path):
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    line = [HAL_MOCK, "run", SMALL, "--", "sh", "-c", "echo $HAL_MOCK_MACHINE; ls $TMPDIR; exit 3"]
    done = subprocess.run(line, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    name, folder = done.stdout.split()
    assert folder in name
    assert list(tmp_path.iterdir()) == []


def test_another_shell_breaks_the_machine_by_its_usual_name(start, state):
    ask = "while read line; do ls /sys/class/infiniband | wc -l; done"
    with start("sh", "-c", ask, stdin=subprocess.PIPE) as process:

        def count() -> int:
            process.stdin.write("\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        before = count()
        environ = {**os.environ, "HAL_MACHINE": f"{SMALL}?state={state}"}
        subprocess.run([HAL_MOCK, "fault", "mlx5_0", "fallen-off-bus"], env=environ, check=True, capture_output=True)
        assert count() < before
        subprocess.run([HAL_MOCK, "heal"], env=environ, check=True, capture_output=True)
        assert count() == before
        process.communicate(timeout=30)


def test_reset_inside_makes_the_machine_sound_and_leaves_its_sysfs_in_place(run):
    script = f"{HAL_MOCK} fault mlx5_0 fallen-off-bus && {HAL_MOCK} reset && ls /sys/class/infiniband | wc -l"
    code, out, err = run("sh", "-c", script)
    assert code == 0, err
    assert int(out.splitlines()[-1]) == int(run("sh", "-c", "ls /sys/class/infiniband | wc -l")[1])


def test_the_network_of_outside_can_be_kept(run):
    inside = "readlink /proc/self/ns/net"
    assert run("sh", "-c", inside, options=("--share-network",))[1].strip() == os.readlink("/proc/self/ns/net")
    assert run("sh", "-c", inside)[1].strip() != os.readlink("/proc/self/ns/net")


@pytest.fixture
def as_nobody():
    """Run hal-mock as a user without any rights, at home in a folder of his own (pytest's are for its user alone)."""
    root = os.getuid() == 0
    programs = (HAL_MOCK, os.path.realpath(sys.executable), hal_mocks.__file__)
    closed = [path for program in programs for path in Path(program).parents if not path.stat().st_mode & 0o001]
    if root and closed:
        pytest.skip(f"an ordinary user cannot get at our programs: {closed[0]} is closed to others")
    with tempfile.TemporaryDirectory(prefix="hal-nobody-") as home:
        if root:
            os.chown(home, NOBODY, NOBODY)

        def call(*arguments: str) -> subprocess.CompletedProcess[str]:
            prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if root else []
            environ = {"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": home, "LC_ALL": "C.UTF-8"}
            return subprocess.run(
                [*prefix, HAL_MOCK, "run", *arguments],
                env=environ, cwd="/", capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip

        yield call


def test_an_ordinary_user_needs_no_rights_and_stays_who_he_is(as_nobody):
    done = as_nobody(SMALL, "--", "sh", "-c", "id -u; grep CapEff /proc/self/status; lspci | wc -l")
    assert done.returncode == 0, done.stderr
    user, _, capabilities, functions = done.stdout.split()
    assert int(user) == (NOBODY if os.getuid() == 0 else os.getuid())
    assert int(capabilities, 16) == 0
    assert int(functions) > 5


def test_an_ordinary_user_may_appear_as_root(as_nobody):
    done = as_nobody("--as-root", SMALL, "--", "id", "-u")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_an_ordinary_users_listeners_hear_of_hot_plug(as_nobody):
    script = (
        "import pyudev, subprocess, sys\n"
        "context = pyudev.Context()\n"
        "monitors = [pyudev.Monitor.from_netlink(context, source) for source in ('kernel', 'udev')]\n"
        "[monitor.start() for monitor in monitors]\n"
        f"subprocess.run([{HAL_MOCK!r}, 'fault', 'mlx5_0', 'fallen-off-bus'], check=True, stdout=subprocess.DEVNULL)\n"
        "for monitor in monitors:\n"
        "    event = monitor.poll(20)\n"
        "    print(event.action, event.subsystem)\n"
    )
    done = as_nobody(SMALL, "--", sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["remove", "remove"]


def test_where_namespaces_are_forbidden_it_says_so_and_what_to_do(tmp_path):
    """Within a user namespace of our own, in which the limit is zero, we are what an ordinary user is there."""
    drop = "exec setpriv --bounding-set=-all --inh-caps=-all"
    inner = f"echo 0 > /proc/sys/user/max_user_namespaces; {drop} {HAL_MOCK} run {SMALL} -- true"
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        ["unshare", "-U", "--map-current-user", "--keep-caps", "sh", "-c", inner],
        env=environ, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 125, (done.stdout, done.stderr)
    assert "namespaces are forbidden here: user.max_user_namespaces is 0" in done.stderr
    assert "sysctl -w user.max_user_namespaces=15000" in done.stderr
    assert "HAL_SYSFS_ROOT" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "number", "message"),
    [
        ({"sys/kernel/unprivileged_userns_clone": "0"}, errno.EPERM, "unprivileged_userns_clone is 0"),
        ({"sys/kernel/apparmor_restrict_unprivileged_userns": "1"}, errno.EACCES, "AppArmor"),
        ({"self/status": "Name:\tx\nSeccomp:\t2\n"}, errno.EPERM, "seccomp"),
        ({}, errno.ENOSPC, "as many namespaces as there may be"),
        ({}, errno.EPERM, "Operation not permitted"),
    ],
)
def test_each_way_of_forbidding_namespaces_has_its_remedy(tmp_path, files, number, message):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    error = refusal(OSError(number, os.strerror(number)), tmp_path)
    assert isinstance(error, NotReady)
    assert message in error.message
    assert "hal-mock render" in (error.hint or "")


def test_a_recorded_machine_is_run_on_as_a_profile_is(state, tmp_path):
    probe = str(Path(sys.executable).with_name("hal-probe"))
    environ = {**os.environ, "HAL_MACHINE": f"{SMALL}?state={state}", "XDG_CACHE_HOME": str(tmp_path)}
    (host,) = host_roots(environ)
    root = str(host.root)
    record = [probe, "snapshot", str(tmp_path / "snap.tgz"), "--root", root]
    made = subprocess.run(record, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode in (0, 1), made.stderr
    line = [HAL_MOCK, "run", str(tmp_path / "snap.tgz"), "--", "sh", "-c", "lspci | wc -l; ibstat -l"]
    done = subprocess.run(line, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    functions, *names = done.stdout.split()
    assert int(functions) == len(os.listdir(f"{root}/sys/bus/pci/devices"))
    assert sorted(names) == sorted(os.listdir(f"{root}/sys/class/infiniband"))
    line[3:3] = ["--host", "n1"]
    refused = subprocess.run(line, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 64
    assert "a recorded machine has none" in refused.stderr


def test_a_rack_asks_for_one_host_and_runs_on_it(tmp_path):
    line = [HAL_MOCK, "run", "--state", str(tmp_path), "rack"]
    asked = subprocess.run([*line, "--", "true"], capture_output=True, text=True, timeout=60, check=False)
    assert asked.returncode == 64
    assert "rack-1-n1" in asked.stderr
    wrong = subprocess.run(
        [*line, "--host", "n9", "--", "true"], capture_output=True, text=True, timeout=60, check=False
    )
    assert wrong.returncode == 64
    assert "no host 'n9'" in wrong.stderr


def test_help_names_the_exit_statuses():
    done = subprocess.run([HAL_MOCK, "run", "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "125 where namespaces are forbidden" in done.stdout
