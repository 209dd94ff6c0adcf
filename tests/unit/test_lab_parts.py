"""The parts of the lab that need no QEMU: its agent, its monitor's client, its first root, its report."""

from __future__ import annotations

import json
import lzma
import os
import select
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.lab import agent, hardware, initramfs, kernel, needs
from tests.lab.guest import Guest, GuestError
from tests.lab.qmp import Qmp, QmpError
from tests.lab.report import Report


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """An agent on this machine, behind a socket as QEMU makes it."""
    path = tmp_path / "agent"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rwb", buffering=0) as raw:
            agent.Agent(agent.Lines(raw)).serve()

    server = threading.Thread(target=serve)
    server.start()
    with listener:
        found = Guest(path, {"PATH": os.environ["PATH"], "WORD": "lab"}, str(tmp_path))
        yield found
        found.close()
        server.join(10)
    assert not server.is_alive()


def test_a_program_in_the_guest_is_run_with_its_environment_in_its_folder(guest: Guest, tmp_path: Path):
    ended = guest.run("sh", "-c", "echo $WORD; pwd; echo trouble >&2; exit 3", check=False)
    assert (ended.code, ended.out, ended.err) == (3, f"lab\n{tmp_path}\n", "trouble\n")
    with pytest.raises(GuestError, match="ended with 3: lab"):
        guest.run("sh", "-c", "echo lab; exit 3")


def test_more_output_than_a_pipe_holds_arrives_whole(guest: Guest):
    assert len(guest.run("head", "-c", "3000000", "/dev/zero").out) == 3_000_000


def test_a_program_is_followed_line_by_line_and_interrupted(guest: Guest):
    running = guest.start("sh", "-c", "echo one; echo two; trap 'echo end; exit 0' INT; while :; do sleep 0.01; done")
    assert running.wait_line(lambda line: line == "two", 10) == "two"
    ended = running.stop()
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "end")
    with pytest.raises(GuestError, match="ended with 0 first"):
        running.wait_line(lambda line: line == "one", 1)


def test_a_program_that_does_not_end_is_killed_with_its_children(guest: Guest, tmp_path: Path):
    # The child holds the pipe open: its end is heard, whenever the kernel comes to it.
    os.mkfifo(tmp_path / "held")
    held = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    ended = select.poll()
    ended.register(held, 0)
    with pytest.raises(GuestError, match="still running"):
        guest.run("sh", "-c", "exec 3> held; echo begun >&3; sleep 1000 & wait", timeout=2)
    assert ended.poll(10_000) == [(held, select.POLLHUP)]
    assert os.read(held, 100) == b"begun\n"
    os.close(held)


def test_files_are_moved_whole_and_a_refusal_names_the_file(guest: Guest, tmp_path: Path):
    guest.write(str(tmp_path / "file"), "8 1")
    assert guest.read(str(tmp_path / "file")) == b"8 1"
    with pytest.raises(GuestError, match=r"nowhere.*No such file"):
        guest.read("/nowhere")
    with pytest.raises(GuestError, match="No such file"):
        guest.run("/no/such/program")


def test_what_waits_for_a_guest_that_ends_is_told_so(tmp_path: Path):
    path = tmp_path / "agent"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        pending = threading.Thread(target=lambda: _say_ready_and_hang_up(listener))
        pending.start()
        guest = Guest(path, {}, "/")
        with pytest.raises(GuestError, match=r"ended|gone"):
            guest.run("true")
        pending.join(10)
        guest.close()


def _say_ready_and_hang_up(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b'{"ready": true, "uptime": 1.5}\n')
        connection.recv(1)


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Qmp]:
    """A client of a monitor that knows four commands."""
    path = tmp_path / "qmp"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        server = threading.Thread(target=_monitor, args=(listener,))
        server.start()
        client = Qmp(path)
        yield client
        client.close()
        server.join(10)


def _monitor(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection, connection.makefile("rwb", buffering=0) as file:
        file.write(b'{"QMP": {}}\n')
        while line := file.readline():
            request = json.loads(line)
            match request["execute"]:
                case "device_del":
                    # An event that comes before the answer is kept for whoever waits for it.
                    file.write(b'{"event": "DEVICE_DELETED", "data": {"path": "/x"}}\n{"return": {}}\n')
                    file.write(b'{"event": "DEVICE_DELETED", "data": {"device": "hot"}}\n')
                case "human-monitor-command":
                    said = "OK id: x" if request["arguments"]["command-line"] == "good" else "unknown command"
                    file.write(json.dumps({"return": said}).encode() + b"\n")
                case "bad":
                    file.write(b'{"error": {"class": "GenericError", "desc": "no such thing"}}\n')
                case _:
                    file.write(b'{"return": {}}\n')


def test_events_of_the_monitor_are_kept_until_they_are_waited_for(monitor: Qmp):
    monitor.execute("device_del", {"id": "hot"})
    assert monitor.wait_event("DEVICE_DELETED", device="hot")["data"] == {"device": "hot"}
    assert monitor.wait_event("DEVICE_DELETED")["data"] == {"path": "/x"}
    with pytest.raises(QmpError, match="the event RESET in time"):
        monitor.wait_event("RESET", timeout=0.05)


def test_a_refusal_of_the_monitor_is_an_error(monitor: Qmp):
    with pytest.raises(QmpError, match="bad: no such thing"):
        monitor.execute("bad")
    with pytest.raises(QmpError, match="unknown command"):
        monitor.monitor("wrong")
    assert monitor.monitor("good") == "OK id: x"


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    folder = tmp_path / "modules"
    (folder / "kernel").mkdir(parents=True)
    needed = {
        "kernel/virtio-pci.ko": "kernel/virtio.ko",
        "kernel/virtio.ko": "",
        "kernel/virtio_console.ko": "kernel/virtio.ko",
        "kernel/9p.ko": "kernel/9pnet.ko",
        "kernel/9pnet.ko": "",
        "kernel/9pnet_virtio.ko": "kernel/virtio.ko kernel/9pnet.ko",
    }
    (folder / "modules.dep").write_text("".join(f"{path}: {rest}\n" for path, rest in needed.items()))
    (folder / "modules.builtin").write_text("kernel/overlay.ko\n")
    for path in needed:
        (folder / path).write_bytes(path.encode())
    return folder


def test_modules_are_loaded_after_what_they_need_and_once(modules: Path):
    order = [
        path.name for path in initramfs.with_dependencies(modules, ["9pnet_virtio", "overlay", "virtio_pci", "9p"])
    ]
    assert order == ["virtio.ko", "9pnet.ko", "9pnet_virtio.ko", "virtio-pci.ko", "9p.ko"]
    with pytest.raises(LookupError, match="no module nvme"):
        initramfs.with_dependencies(modules, ["nvme"])


def test_the_first_root_holds_what_it_needs_and_is_a_cpio_archive(modules: Path, tmp_path: Path):
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"busybox")
    entries = _entries(initramfs.build(busybox, modules, ["/bin/sh", "-c", "it's time"]))
    assert entries["bin/busybox"] == (0o100755, b"busybox")
    assert entries["dev/console"][0] == 0o20600
    assert entries["modules/order"][1].decode().split()[-1] == "9pnet_virtio.ko"
    script = entries["init"][1].decode()
    assert "@LAST@" not in script
    subprocess.run(["sh", "-n"], input=script.encode(), check=True, timeout=10)


def _entries(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a cpio archive by its own rules, beside those that wrote it."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + index * 8 :][:8], 16) for index in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        start = (at + 110 + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = fields[1], data[start : start + fields[6]]
        at = (start + fields[6] + 3) & ~3


def _image(kernel_bytes: bytes) -> bytes:
    packed = lzma.compress(kernel_bytes)
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x248:0x24C] = (16).to_bytes(4, "little")
    head[0x24C:0x250] = len(packed).to_bytes(4, "little")
    return bytes(head) + bytes(16) + packed + b"rest"


def test_a_kernel_is_unpacked_once_and_only_if_it_can_be_booted_so(tmp_path: Path):
    image = tmp_path / "vmlinuz-6"
    elf = b"\x7fELF" + b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0" + b"code"
    image.write_bytes(_image(elf))
    os.utime(image, (1, 1))
    unpacked = kernel.unpacked(image, tmp_path)
    assert unpacked.read_bytes() == elf
    made = unpacked.stat().st_mtime_ns
    assert kernel.unpacked(image, tmp_path).stat().st_mtime_ns == made
    other = tmp_path / "vmlinuz-7"
    other.write_bytes(_image(b"\x7fELF without an entry for QEMU"))
    assert kernel.unpacked(other, tmp_path) == other


def test_the_images_hold_a_label_area_beside_the_namespace(tmp_path: Path):
    hardware.make_images(tmp_path)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == hardware.IMAGES
    assert sizes["nvdimm0"] - hardware.LABEL_BYTES == hardware.NVDIMM_BYTES
    assert sum(path.stat().st_blocks for path in tmp_path.iterdir()) == 0


def test_a_host_without_qemu_is_told_which_packages_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(needs, "_SYSTEM_PATH", "")
    monkeypatch.setattr(needs, "_DEBIAN_PYTHON", tmp_path)
    monkeypatch.setattr(needs, "_newest_kernel", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(needs.Missing) as missing:
        needs.find_host()
    (line,) = missing.value.lines
    assert line.startswith("sudo apt-get install")
    assert {"qemu-system-x86", "linux-image-amd64", "busybox-static", "kmod", "ndctl"} <= set(line.split())


def test_the_newest_kernel_with_its_modules_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for release in ("6.1.0-9-amd64", "6.1.0-10-amd64", "6.9.1-cloud-amd64"):
        (tmp_path / f"vmlinuz-{release}").touch()
        if "cloud" not in release:
            folder = tmp_path / "modules" / release
            folder.mkdir(parents=True)
            (folder / "modules.dep").write_text("kernel/drivers/acpi/nfit/nfit.ko:\n")
    monkeypatch.setattr(needs, "_BOOT", tmp_path)
    monkeypatch.setattr(needs, "_MODULES", tmp_path / "modules")
    found = needs._newest_kernel()
    assert found is not None
    assert found[1] == "6.1.0-10-amd64"


def test_a_report_counts_what_failed_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report = Report()

    def good() -> str:
        """the good one"""
        return "fine"

    def bad() -> None:
        raise AssertionError("broken \x1b[31mhere")

    assert not report.passed
    assert report.check(good)
    assert report.passed
    assert not report.check(bad, "the bad one")
    assert not report.passed
    assert report.verdict() == "1 of 2 checks FAILED"
    said = capsys.readouterr().out
    assert "the good one: fine" in said
    assert "FAIL" in said
    report.write(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [check["passed"] for check in summary["checks"]] == [True, False]
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert suite.findtext("testcase/failure") == "broken ?[31mhere"
