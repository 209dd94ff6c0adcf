"""The device filter: the program, as an interpreter of its own and the kernel understand it, and its control groups."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.agent import cgroup
from hal.agent.cgroup import ANY, USUAL, Node, nodes_of, own_folder, program
from hal.errors import AccessDenied
from hal.model.kind import Kind
from hal.model.lease import AllocatedDevice
from tests.budget import examples

MKNOD, READ, WRITE = 1, 2, 4
numbers = st.integers(0, 0xFFF)
nodes = st.builds(Node, st.sampled_from("bc"), numbers, st.one_of(st.just(ANY), numbers))


def interpret(code: bytes, type_: str, major: int, minor: int, access: int) -> int:
    """Run a program as include/uapi/linux/bpf.h says; only what is known here may occur in it."""
    context = struct.pack("=III", {"b": 1, "c": 2}[type_] | access << 16, major, minor)
    registers = [0] * 11
    place, steps = 0, 0
    while True:
        steps += 1
        assert steps <= 4096, "it does not end"
        operation, pair, offset, value = struct.unpack_from("=BBhi", code, place * 8)
        target, source = pair & 15, pair >> 4
        place += 1
        if operation == 0x61:
            assert source == 1
            (registers[target],) = struct.unpack_from("=I", context, offset)
        elif operation == 0xBF:
            registers[target] = registers[source]
        elif operation == 0x77:
            registers[target] >>= value
        elif operation == 0x57:
            registers[target] &= value
        elif operation == 0xB7:
            registers[target] = value
        elif operation == 0x55:
            place += offset if registers[target] != value else 0
        elif operation == 0x95:
            return registers[0]
        else:
            raise AssertionError(hex(operation))


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(nodes, max_size=8), nodes, st.sampled_from([READ, WRITE, READ | WRITE]))
def test_it_allows_what_is_allowed_and_nothing_else(allowed, asked, access):
    asked = asked if asked.minor != ANY else Node(asked.type, asked.major, 7)
    expected = any(
        node.type == asked.type and node.major == asked.major and node.minor in (ANY, asked.minor) for node in allowed
    )
    assert interpret(program(allowed), asked.type, asked.major, asked.minor, access) == expected


def test_making_a_node_is_allowed_as_it_opens_nothing():
    assert interpret(program(()), "c", 1, 1, MKNOD) == 1
    assert interpret(program(()), "c", 1, 1, MKNOD | READ) == 0


def test_the_kernel_verifies_programs_of_any_length():
    many = [Node("c", 195, minor) for minor in range(300)]
    try:
        found = cgroup.load(program([*USUAL, *many]))
    except PermissionError as error:
        print(f"not verified here: {error.strerror}")
        return
    os.close(found)
    print("verified by the kernel")


@pytest.mark.parametrize("version", ["v2", "v1"])
def test_a_program_in_the_group_opens_what_is_allowed_and_nothing_else(version):
    make = {"v2": cgroup._confine_v2, "v1": cgroup._confine_v1}[version]
    try:
        made = make(f"hal-test-{os.getpid()}", [Node("c", 1, 3), Node("c", 1, 9)])
    except (OSError, LookupError) as error:
        print(f"cgroup {version} is not to be had here: {error}")
        with pytest.raises((OSError, LookupError)):
            make(f"hal-test-{os.getpid()}", [])
        return
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        answers = ""
        try:
            Path(made.procs).write_text("0")
            for path in ("/dev/null", "/dev/urandom", "/dev/zero", "/dev/tty"):
                try:
                    os.close(os.open(path, os.O_RDONLY))
                    answers += "y"
                except PermissionError:
                    answers += "n"
                except OSError:
                    answers += "?"
        finally:
            os.write(writing, answers.encode() or b"-")
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 16) == b"yynn"
    os.close(reading)
    os.close(writing)
    cgroup.release(made)
    assert not Path(made.folder).exists()


def test_where_neither_version_is_there_both_reasons_are_told(monkeypatch):
    def no(hierarchy):
        raise LookupError(f"{hierarchy} is not mounted")

    monkeypatch.setattr(cgroup, "own_folder", no)
    with pytest.raises(AccessDenied, match=r"cgroup v2: cgroup2 is not mounted; cgroup v1: devices is not mounted"):
        cgroup.confine("x", USUAL)


def test_the_own_group_is_found_by_the_kernels_tables(tmp_path):
    (tmp_path / "cgroup").write_text("4:cpu,devices:/docker/abc\n0::/user.slice/a b\n")
    (tmp_path / "mountinfo").write_text(
        "30 1 0:2 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "31 1 0:3 /docker/abc /sys/fs/cgroup/devices rw shared:1 - cgroup cgroup rw,cpu,devices\n"
    )
    assert own_folder("cgroup2", tmp_path) == Path("/sys/fs/cgroup/unified/user.slice/a b")
    assert own_folder("devices", tmp_path) == Path("/sys/fs/cgroup/devices")
    with pytest.raises(LookupError):
        own_folder("freezer", tmp_path)


def test_the_nodes_of_a_device_are_its_own_and_not_those_behind_it(tmp_path):
    pci = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    for path, text in (
        ("drm/card0/dev", "226:0"),
        ("drm/renderD128/dev", "226:128"),
        ("infiniband_verbs/uverbs0/dev", "231:192"),
        ("ndbus0/region0/namespace0.0/block/pmem0/dev", "259:0"),
        ("0000:02:00.0/nvme/nvme0/dev", "240:0"),
        ("broken/dev", "x"),
    ):
        (pci / path).parent.mkdir(parents=True, exist_ok=True)
        (pci / path).write_text(text)
    information = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information"
    information.parent.mkdir(parents=True)
    information.write_text("Model: x\nDevice Minor: \t 3\n")
    given = AllocatedDevice(
        id="g", kind=Kind.GPU, name="gpu0", node="n", driver="x", vendor="NVIDIA", aliases=("pci:0000:01:00.0",)
    )
    assert nodes_of([given], tmp_path) == (
        Node("b", 259, 0),
        Node("c", 226, 0),
        Node("c", 226, 128),
        Node("c", 231, 192),
    )
    assert cgroup._nvidia_node(given, tmp_path) == ["/dev/nvidia3"]
