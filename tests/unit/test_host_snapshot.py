import io
import os
import re
import tarfile

import pytest

from hal.drivers.contract import HostRoot
from hal.errors import DriverError
from hal.host.archive import unpack
from hal.host.driver import discover_host
from hal.host.redact import Pseudonyms
from hal.host.snapshot import record
from hal.model.attributes import Absence
from hal.model.device import Device
from hal.testing.example_tree import one_of_each
from hal.testing.trees import FakeTree

GPU_UUID = "GPU-11111111-2222-3333-4444-555555555555"
SECRETS = (
    "S4EVNX0R000001", "MT2312X00001", "56341200", "1f2e3d4c5b6a7988", "abcdef01", "UP0123456789", "ab:5f:40",
    "ab5f40", "00ab:5f40", "11:22:33", "0011:2233", "fe11:2233", "0a01:0203", "6f9619ff", "11111111-2222",
    "secrethost", "aabb01", "aa:bb:01",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path) -> FakeTree:
    tree = one_of_each(tmp_path / "host")
    tree.beside("proc/driver/nvidia/gpus/0000:18:00.0/information", f"Model: \t NVIDIA H100\nGPU UUID:\t {GPU_UUID}\n")
    rdma = f"{tree.path_of('0000:19:00.0')}/infiniband/mlx5_0"
    tree.write(f"{rdma}/node_desc", "secrethost mlx5_0")
    tree.pci("0000:05:00.0", parent="pci0000:00", vendor="8086", device="1593", class_code="020000")
    tree.netdev("enxb49691aabb01", pci="0000:05:00.0", mac="b4:96:91:aa:bb:01")
    return tree


def replay(path: str, node: str = "secrethost") -> list[Device]:
    return list(discover_host(HostRoot(node=node, root=path)).devices)


def contents(path: str) -> bytes:
    """All names, links and bytes of a snapshot."""
    parts: list[bytes] = []
    with tarfile.open(path) as archive:
        for member in archive:
            parts += [member.name.encode(), member.linkname.encode()]
            file = archive.extractfile(member) if member.isreg() else None
            parts.append(file.read() if file is not None else b"")
    return b"\n".join(parts)


def translate(text: str, seen: dict[str, str]) -> str:
    """Put the pseudonyms into what was found on the machine itself, also where separators were left out."""
    pairs = dict(seen)
    for old, new in seen.items():
        if re.fullmatch(r"[0-9a-fA-F:]+", old) and ":" in old:
            pairs[old.replace(":", "").lower()] = new.replace(":", "").lower()
        if old.startswith("0x"):
            pairs[old[2:]] = new[2:]
    for old in sorted(pairs, key=len, reverse=True):
        text = text.replace(old, pairs[old])
    return text


def test_replay_gives_the_same_devices_under_pseudonyms(tree, tmp_path):
    target = str(tmp_path / "host.tgz")
    hidden = Pseudonyms(b"k" * 32, names=("secrethost",))
    record(HostRoot(node="secrethost", root=tree.root), target, pseudonyms=hidden)
    original = discover_host(HostRoot(node="secrethost", root=tree.root)).devices
    again = replay(target)
    assert len(again) == len(original)
    seen = {old: new for old, new in hidden.seen.items() if old != "secrethost"}
    for before, after in zip(original, again, strict=True):
        assert translate(repr(before), seen) == repr(after)


def test_nothing_that_identifies_the_machine_is_in_the_file(tree, tmp_path):
    target = str(tmp_path / "host.tgz")
    record(HostRoot(node="secrethost", root=tree.root), target)
    everything = contents(target).lower()
    for secret in SECRETS:
        assert secret.lower().encode() not in everything, secret


def test_equal_stays_equal_and_relations_survive(tree, tmp_path):
    target = str(tmp_path / "host.tgz")
    record(HostRoot(node="n", root=tree.root), target)
    found = {device.name: device for device in replay(target)}
    rnic = found["mlx5_0"]
    guid = str(rnic.value("node_guid"))
    assert str(rnic.value("gids")[0]).replace(":", "").endswith(guid), "a link-local GID still holds the GUID"
    assert found["region0"].value("dimms") == (found["nmem0"].id, found["nmem1"].id)
    assert found["dpu_rank0"].parent == found["dimm0"].id
    assert found["mlx5_1"].parent == found["dpu0"].id
    nic = next(name for name in found if name.startswith("enx"))
    assert str(found[nic].value("mac")).replace(":", "") == nic[3:], "a name made of a MAC follows it"
    assert found["gpu0"].value("model") == "NVIDIA H100"


def test_two_snapshots_do_not_share_pseudonyms(tree, tmp_path):
    ids = []
    for name in ("a.tgz", "b.tgz"):
        record(HostRoot(node="n", root=tree.root), str(tmp_path / name))
        ids.append({device.id for device in replay(str(tmp_path / name)) if device.id.startswith("rnic-")})
    assert not ids[0] & ids[1]


def test_what_could_not_be_read_is_absent_for_the_same_reason(tree, tmp_path):
    gpu = tree.path_of("0000:18:00.0")
    tree.unreadable(f"{gpu}/max_link_width")
    tree.fifo(f"{gpu}/max_link_speed")
    tree.garbage(f"{gpu}/current_link_width")
    tree.write(f"{gpu}/numa_node", b"")
    target = str(tmp_path / "host.tgz")
    recording = record(HostRoot(node="n", root=tree.root), target)
    assert f"sys/{gpu}/max_link_width" in recording.unreadable
    before = {device.name: device for device in replay(tree.root)}["gpu0"]
    after = {device.name: device for device in replay(target)}["gpu0"]
    names = before.attributes.keys() - {"uuid"}
    assert {name: after.attributes[name] for name in names} == {name: before.attributes[name] for name in names}
    assert after.why_absent("link_max_width") is Absence.PERMISSION
    assert after.why_absent("link_max_speed_gts") is Absence.TIMEOUT
    with tarfile.open(target) as archive:
        assert archive.getmember(f"sys/{gpu}/max_link_width").mode == 0


def test_a_snapshot_of_a_snapshot_is_a_snapshot(tree, tmp_path):
    first, second = str(tmp_path / "a.tgz"), str(tmp_path / "b.tgz")
    record(HostRoot(node="n", root=tree.root), first)
    record(HostRoot(node="n", root=first), second)
    assert [device.name[:3] for device in replay(second)] == [device.name[:3] for device in replay(first)]


def test_a_target_that_cannot_be_written_is_an_error_and_leaves_nothing(tree, tmp_path):
    with pytest.raises(DriverError) as caught:
        record(HostRoot(node="n", root=tree.root), str(tmp_path / "no" / "such" / "folder.tgz"))
    assert caught.value.hint
    assert not (tmp_path / "no").exists()


def archive_of(path, *members: tuple[tarfile.TarInfo, bytes]) -> str:
    with tarfile.open(path, "w:gz") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return str(path)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o755 if kind == tarfile.DIRTYPE else 0o444
    return info


@pytest.mark.parametrize(
    "members",
    [
        [member("/etc/evil")],
        [member("../evil")],
        [member("sys/../../evil")],
        [member("sys/dev", tarfile.CHRTYPE)],
        [member("sys/pipe", tarfile.FIFOTYPE)],
        [member("sys/hard", tarfile.LNKTYPE, "/etc/passwd")],
        [member("sys/out", tarfile.SYMTYPE, "/etc")],
        [member("sys/out", tarfile.SYMTYPE, "../../etc")],
        [member("sys/in", tarfile.SYMTYPE, "bus"), member("sys/in/file")],
        [member("sys/twice"), member("sys/twice")],
    ],
    ids=["absolute", "dotdot", "inner", "device", "pipe", "hard", "link", "updown", "through", "twice"],
)
def test_an_archive_that_reaches_outside_is_refused(tmp_path, members):
    path = archive_of(tmp_path / "bad.tgz", *((one, b"") for one in members))
    with pytest.raises(DriverError) as caught:
        unpack(path)
    assert "bad.tgz" in str(caught.value)
    assert os.listdir(tmp_path / "cache" / "hal" / "snapshots") == [], "nothing is left behind"


@pytest.mark.parametrize("data", [b"", b"not an archive", b"\x1f\x8b\x08\x00garbage"])
def test_a_file_that_is_no_archive_is_refused(tmp_path, data):
    (tmp_path / "bad.tgz").write_bytes(data)
    with pytest.raises(DriverError):
        unpack(str(tmp_path / "bad.tgz"))


def test_the_same_contents_are_unpacked_once(tmp_path):
    first = archive_of(tmp_path / "a.tgz", (member("sys/bus", tarfile.DIRTYPE), b""))
    os.link(first, tmp_path / "b.tgz")
    assert unpack(first) == unpack(str(tmp_path / "b.tgz"))


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("02:fc:00:12:34:56", r"02(:[0-9a-f]{2}){5}"),
        ("b4:96:91:aa:bb:01", r"b4:96:91(:[0-9a-f]{2}){3}"),
        ("a088:c203:00ab:5f40", r"a088:c203:00[0-9a-f]{2}:[0-9a-f]{4}"),
        ("6f9619ff-8b86-d011-b42d-00c04fc964ff", r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
        ("0000:0000:0000:0000:0000:ffff:0a01:0203", r"(0000:){5}ffff:[0-9a-f]{4}:[0-9a-f]{4}"),
        ("192.168.17.4", r"\d+\.\d+\.\d+\.\d+"),
    ],
)
def test_a_pseudonym_has_the_form_of_what_it_stands_for(text, form):
    hidden = Pseudonyms()
    new = hidden.text(f"before {text} after").removeprefix("before ").removesuffix(" after")
    assert re.fullmatch(form, new)
    assert new != text
    assert hidden.text(text) == new


@pytest.mark.parametrize("text", ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "0000:17:00.0", "28.39.1002", "1: CA"])
def test_what_identifies_nothing_stays(text):
    assert Pseudonyms().text(text) == text


@pytest.mark.parametrize("serial", ["S4EVNX0R000001", "0x56341200", "MT2312X00001", "1652823054187"])
def test_a_serial_number_keeps_its_letters_digits_and_prefix(serial):
    new = Pseudonyms().identity(serial)
    assert new != serial
    assert len(new) == len(serial)
    assert new.startswith("0x") == serial.startswith("0x")
    if not serial.startswith("0x"):
        assert [char.isalpha() for char in new] == [char.isalpha() for char in serial] or serial.isdigit()
