import os
import subprocess
import sys
import textwrap

import pytest

from hal.host.uevents import Loss, Uevent, UeventReader, parse
from hal.interfaces.deadline import Deadline

DEVPATH = "/devices/pci0000:10/0000:10:01.0"


def message(**fields: str) -> bytes:
    head = f"{fields['ACTION']}@{fields['DEVPATH']}\0"
    return (head + "".join(f"{key}={value}\0" for key, value in fields.items())).encode()


def test_an_event_of_the_kernel_is_parsed():
    event = parse(message(ACTION="add", DEVPATH=DEVPATH, SUBSYSTEM="pci", SEQNUM="4711", PCI_ID="10DE:2330"))
    assert event == Uevent(
        action="add", devpath=DEVPATH, subsystem="pci", sequence=4711, properties={"PCI_ID": "10DE:2330"}
    )


@pytest.mark.parametrize("data", [b"", b"libudev\0\xfe\xed\xca\xfe", b"no header\0A=B\0"])
def test_what_is_no_event_of_the_kernel_is_none(data):
    assert parse(data) is None


def test_nonsense_within_an_event_does_not_hurt():
    event = parse(b"change@/devices/x\0SEQNUM=many\0\xff=\xfe\0alone\0")
    assert event is not None
    assert (event.action, event.sequence) == ("change", 0)


def test_a_deadline_that_has_passed_gives_nothing():
    with UeventReader() as reader:
        while reader.next(Deadline.after(0)) is not None:
            pass
        assert list(reader.events(Deadline.after(0))) == []


INSIDE = textwrap.dedent(
    """
    import ctypes, os, socket, struct, sys
    from hal.host.uevents import Loss, Uevent, UeventReader
    from hal.interfaces.deadline import Deadline

    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(0x10000000 | 0x40000000):  # CLONE_NEWUSER | CLONE_NEWNET
        print("forbidden", os.strerror(ctypes.get_errno()))
        sys.exit(0)
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write(f"0 {user} 1")
    open("/proc/self/gid_map", "w").write(f"0 {group} 1")

    def send(sender, action):
        body = f"{action}@{DEVPATH}\\0ACTION={action}\\0DEVPATH={DEVPATH}\\0SUBSYSTEM=pci\\0".encode()
        sender.sendto(struct.pack("=LHHLL", 16 + len(body), 0x10, 1, 1, 0) + body, (0, 0))

    DEVPATH = "/devices/pci0000:10/0000:10:01.0"
    sender = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)
    sender.bind((0, 0))
    with UeventReader(buffer_bytes=64 << 10) as reader:
        try:
            send(sender, "remove")
        except PermissionError as error:
            print("forbidden", error)
            sys.exit(0)
        event = reader.next(Deadline.after(10))
        assert isinstance(event, Uevent) and event.action == "remove" and event.subsystem == "pci", event
        assert event.devpath == DEVPATH and event.sequence > 0, event
        for _ in range(5000):
            send(sender, "change")
        seen = [reader.next(Deadline.after(0))]
        while seen[-1] is not None:
            seen.append(reader.next(Deadline.after(0)))
        losses = [one for one in seen if isinstance(one, Loss)]
        assert losses and losses[-1].count == reader.losses == len(losses), losses
        assert 1 < len(seen) < 5000, len(seen)
        send(sender, "add")
        event = reader.next(Deadline.after(10))
        assert isinstance(event, Uevent) and event.action == "add", event
    print("survived", len(seen))
    """
)


def test_a_reader_survives_a_burst_and_says_that_events_were_lost():
    done = subprocess.run(
        [sys.executable, "-c", INSIDE], capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    # Where user name spaces are forbidden only the parsing above can be shown.
    assert done.stdout.startswith(("survived", "forbidden")), done.stdout


def test_a_process_that_pretends_to_be_the_kernel_is_not_believed():
    class Socket:
        def __init__(self) -> None:
            self.waiting = [
                (message(ACTION="add", DEVPATH="/forged"), (4242, 1)),
                (message(ACTION="add", DEVPATH="/real"), (0, 1)),
            ]

        def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
            if not self.waiting:
                raise BlockingIOError
            return self.waiting.pop(0)

        def settimeout(self, seconds: float | None) -> None: ...

        def setblocking(self, flag: bool) -> None: ...

        def close(self) -> None: ...

    reader = UeventReader()
    reader.close()
    reader._socket = Socket()
    seen = list(reader.events(Deadline.after(10)))
    assert [event.devpath for event in seen if not isinstance(event, Loss)] == ["/real"]
