from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.errors import ProfileError
from hal_mocks.graph import Graph
from hal_mocks.profile import PROFILES, load_profile, parse_profile, profile_names

BASE = """\
summary = "a small machine"

[host]
cpu = "AMD EPYC 9354"
distances = [
  [10, 20],
  [20, 10],
]

[[numa]]
count = 2
cores = 4
memory = "64 GiB"

[[switch]]
name = "sw0"
bus = 0x20

[[gpu]]
count = 2
model = "H100-SXM5-80GB"
switch = "sw0"
nvlink = "switch"

[[rnic]]
model = "ConnectX-7"
switch = "sw0"

[[nvme]]
model = "PM9A3-1.92TB"
numa = 1

[[pmem]]
model = "Optane-PMem-200-128GB"
dimms = 2

[[namespace]]
region = "region0"
mode = "fsdax"
size = "1 GiB"

[[upmem]]
count = 2

[[disabled]]
rank = "dpu_rank1"
dpus = [3]

[[dpu]]
model = "BlueField-3"
numa = 0
nvme = ["nvme0"]
"""

MISTAKES = [
    ('model = "H100-SXM5-80GB"', 'modle = "H100-SXM5-80GB"', "unknown key 'modle'", "'model'?"),
    ('model = "H100-SXM5-80GB"', 'model = "H100-SXM-80GB"', "unknown gpu model", "'H100-SXM5-80GB'?"),
    ("[[upmem]]", "[[upmen]]", "unknown key 'upmen'", "'upmem'?"),
    ("count = 2\nmodel", 'count = "2"\nmodel', "expected int, got str", ""),
    ("count = 2\nmodel", "count = 0\nmodel", "int", ""),
    ('switch = "sw0"\nnvlink', 'switch = "sw1"\nnvlink', "unknown switch 'sw1'", "'sw0'?"),
    ('switch = "sw0"\nnvlink', 'switch = ["sw0"]\nnvlink', "1 values for 2 elements", "one for each"),
    ('switch = "sw0"\nnvlink', 'switch = "sw{j}"\nnvlink', "braces", "{i}"),
    ('switch = "sw0"\nnvlink', 'switch = "sw{i//0}"\nnvlink', "divides by zero", ""),
    ('nvlink = "switch"', 'nvlink = "ring"', "invalid enum value 'ring'", ""),
    ('nvlink = "switch"', "nvlink = { gpu7 = 4 }", "unknown NVLink peer 'gpu7'", "gpu0"),
    ('nvlink = "switch"', 'name = "same"', "two devices are called 'same'", "{i}"),
    ('nvlink = "switch"', 'uuid = "GPU-1"', "the same uuid", ""),
    ('nvlink = "switch"', 'pci = "0000:1b:00"', "no PCI address", "0000:1b:00.0"),
    ('nvlink = "switch"', 'pci = "0000:30:00.0"', "used twice", ""),
    ('nvlink = "switch"', "numa = 0", "on the switch's node", "leave numa out"),
    ("  [20, 10],", "  [20, 10, 20],", "row 1 of distances has 3 values", ""),
    ("  [20, 10],", "  [20, 11],", "distance 11 from node 1 to node 1", "ACPI SLIT"),
    ("  [20, 10],\n", "", "1 rows for 2 NUMA nodes", "2 rows"),
    ('memory = "64 GiB"', 'memory = "64 GB of it"', "is no size", "80 GiB"),
    ("numa = 1", "numa = 2", "there is no NUMA node 2", "0, 1"),
    ("bus = 0x20", "bus = 0x1ff", "outside", ""),
    ("bus = 0x20", "domain = -1", "32 bits", ""),
    ('region = "region0"', 'region = "region1"', "unknown region 'region1'", "'region0'?"),
    ('mode = "fsdax"', 'mode = "fsdaks"', "invalid enum value", "'fsdax'? allowed are raw, sector, fsdax, devdax"),
    ('size = "1 GiB"', 'size = "1 TiB"', "namespaces of region0 need", ""),
    ('rank = "dpu_rank1"', 'rank = "dpu_rank9"', "unknown rank 'dpu_rank9'", "dpu_rank"),
    ("dpus = [3]", "dpus = [64]", "processing units 0 to 63", ""),
    ('nvme = ["nvme0"]', 'nvme = ["nvme3"]', "unknown NVMe drive 'nvme3'", "'nvme0'?"),
    ('nvme = ["nvme0"]', 'mode = "smart"', "unknown mode 'smart'", "nic"),
    ("dimms = 2", 'dimms = 2\nsize = "1 PiB"', "cannot make a region", ""),
    ("dimms = 2", 'cookie = "hello"', "interleave set cookie", "0x"),
]


@pytest.mark.parametrize(("right", "wrong", "message", "hint"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_named_with_its_file_and_line_and_what_is_allowed(right, wrong, message, hint):
    assert BASE.count(right) == 1, right
    text = BASE.replace(right, wrong)
    with pytest.raises(ProfileError) as caught:
        parse_profile(text, name="mine")
    found = re.match(r"mine\.toml:(\d+): ", caught.value.message)
    assert found, caught.value.message
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    first = next(n for n, (a, b) in enumerate(zip(BASE.split("\n"), text.split("\n"), strict=False), 1) if a != b)
    line = int(found.group(1))
    added = wrong.count("\n")
    assert first <= line <= first + added or text.split("\n")[line - 1].startswith(("distances", "[[gpu]]"))


def test_the_text_that_the_mistakes_are_made_in_is_right():
    assert len(parse_profile(BASE).hosts) == 1


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ('[[switch]]\nname = "sw1"\nbus = 0x22\n', "is in use by switch[0]"),
        ('[[switch]]\nname = "sw0"\n', "a second switch"),
        ('[[gpu]]\nmodel = "L40S"\npci = "0000:22:00.0"\nnuma = 0\n', "in use"),
        ('[[disabled]]\nrank = "dpu_rank1"\ndpus = [1]\n', "named twice"),
        ('[[quirk]]\npath = "../etc/passwd"\nhow = "missing"\n', "leaves the tree"),
        ('[[quirk]]\npath = "{device}/vendor"\nhow = "missing"\n', "of which device"),
        ("[[gpu]]\nnuma = 0\n", "needs a model"),
        ("[model.toaster.X]\na = 1\n", "unknown sort of model"),
        ("[[rnic]]\nsoft = true\n", "network interface it works over"),
        ('[[rnic]]\nmodel = "ConnectX-7"\nmac = "1:2"\n', "no MAC address"),
        ('[[pci]]\nvendor = "10de"\ndevice = "xyz"\n', "no PCI id"),
        ('[[pci]]\nvendor = "10de"\ndevice = "1234"\nclass = "1"\n', "no PCI class"),
    ],
)
def test_a_table_that_does_not_fit_the_others_is_named_where_it_stands(addition, message):
    with pytest.raises(ProfileError) as caught:
        parse_profile(BASE + addition, name="mine")
    assert message in caught.value.message
    line = int(caught.value.message.split(":")[1])
    assert line >= len(BASE.split("\n")) or "in use" in message


def test_a_syntax_error_has_its_line():
    with pytest.raises(ProfileError, match=r"^mine\.toml:7: Unclosed array"):
        parse_profile(BASE.replace("  [10, 20],", "  [10, 20"), name="mine")
    with pytest.raises(ProfileError, match=r"^mine\.toml:2: "):
        parse_profile('[host]\ncpu = "', name="mine")


def test_a_mistake_in_an_included_profile_is_named_there(tmp_path):
    (tmp_path / "node.toml").write_text(BASE.replace("count = 2\ncores", "count = 2\nkores"))
    room = tmp_path / "room.toml"
    room.write_text('[[host]]\ninclude = "node.toml"\n')
    with pytest.raises(ProfileError, match=r"node\.toml:12: numa\.kores: unknown key"):
        load_profile(room)
    room.write_text('[[host]]\n\ninclude = "nod.toml"\n')
    with pytest.raises(ProfileError, match=r"room\.toml:3: host\.include: .*no such file"):
        load_profile(room)
    room.write_text('[[host]]\ninclude = "room.toml"\n')
    with pytest.raises(ProfileError, match=r"room\.toml:2: .*includes profiles itself"):
        load_profile(room)
    room.write_text('[[gpu]]\nmodel = "T4"\n[[host]]\ninclude = "dgx-h100"\n')
    with pytest.raises(ProfileError, match=r"room\.toml:1: "):
        load_profile(room)


def test_hosts_cannot_share_a_name_and_need_one_that_is_one(tmp_path):
    with pytest.raises(ProfileError, match=r":3: .*two hosts are called 'x'"):
        parse_profile('[host]\ncount = 2\nname = "x"\n[[numa]]\ncores = 1\n')
    with pytest.raises(ProfileError, match=r":2: .*no name for a host"):
        parse_profile('[host]\nname = "../x"\n[[numa]]\ncores = 1\n')


def test_a_file_that_is_not_text_is_refused_with_its_line(tmp_path):
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"# fine\n\xff\n")
    with pytest.raises(ProfileError, match=r"bytes\.toml:2: not UTF-8"):
        load_profile(path)
    with pytest.raises(ProfileError, match="no such file"):
        load_profile(tmp_path / "none.toml")


TEXTS = {name: (PROFILES / f"{name}.toml").read_text() for name in profile_names() if name != "dgx-hall"}
WORDS = [
    "-1", "0", "1", "99999", "nan", "inf", '""', '"x"', '"{i"', '"{i//0}"', "[]", "[1, 2]", '["a"]', "{}", "{a = 1}",
    "true", "1979-05-27", "[[10]]", '"0000:10:00.0"', '"80 GiB"', '"10de:2330"', "9223372036854775807", "0.5",
    '"\\u0000"', '"mesh"', '"../x"', '"é"', "[", '"""',
]  # fmt: skip


@st.composite
def mutated(draw):
    lines = TEXTS[draw(st.sampled_from(sorted(TEXTS)))].split("\n")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        how = draw(st.sampled_from(["drop", "double", "value", "key", "sign"]))
        if how == "drop" and len(lines) > 1:
            del lines[at]
        elif how == "double":
            lines.insert(at, lines[draw(st.integers(0, len(lines) - 1))])
        elif how == "value" and "=" in lines[at]:
            lines[at] = lines[at].partition("=")[0] + "= " + draw(st.sampled_from(WORDS))
        elif how == "key" and "=" in lines[at]:
            key = draw(st.sampled_from(["name", "count", "numa", "pci", "switch", "domain", "bus", "serial", "zzz"]))
            lines[at] = key + " =" + lines[at].partition("=")[2]
        elif lines[at]:
            column = draw(st.integers(0, len(lines[at]) - 1))
            sign = draw(st.sampled_from(list("\"'[]{}=.#\n\\ ,ax0")))
            lines[at] = lines[at][:column] + sign + lines[at][column + 1 :]
    return "\n".join(lines)


@settings(max_examples=300, deadline=None)
@given(mutated())
def test_a_mangled_profile_is_a_machine_or_a_mistake_with_a_line_and_nothing_else(text):
    found = _outcome(text)
    assert isinstance(found, Graph) or re.match(r"\S+\.toml:\d+: .", found)


def _outcome(text: str) -> Graph | str:
    try:
        return parse_profile(text)
    except ProfileError as error:
        return error.message
