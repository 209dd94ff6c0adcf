"""hal-probe imports msgspec without typing_extensions: nothing else may be different afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

ALL_TYPES = """
import importlib, json, pkgutil
import msgspec, hal
for package in ("model", "drivers", "agent", "cli", "host", "interfaces"):
    folder = importlib.import_module("hal." + package)
    for found in pkgutil.walk_packages(folder.__path__, folder.__name__ + "."):
        importlib.import_module(found.name)

def every(kind):
    for below in kind.__subclasses__():
        yield below
        yield from every(below)

said = {}
for kind in sorted({one for one in every(msgspec.Struct) if one.__module__.startswith("hal.")}, key=repr):
    try:
        msgspec.json.Decoder(kind)
        said[repr(kind)] = msgspec.json.schema(kind)
    except (TypeError, NameError) as error:
        said[repr(kind)] = type(error).__name__
print(json.dumps(said, sort_keys=True))
"""
FEWER = "import hal.cli.probe; hal.cli.probe.with_fewer_imports()\n"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_types_are_what_they_are_without_it():
    with_fewer, as_ever = run(FEWER + ALL_TYPES), run(ALL_TYPES)
    assert "InventoryReport" in as_ever
    assert with_fewer == as_ever


def test_values_survive_a_round_trip():
    run(
        FEWER
        + """
import datetime, decimal, enum, typing, uuid
import msgspec
from hal.model.attributes import Absence, Attribute
from hal.model.device import Device, Location
from hal.model.kind import Kind
device = Device(id="a", kind=Kind.GPU, name="gpu0", driver="x", location=Location(node="n", pci_path=("pci0000:00",)),
                attributes={"one": Attribute((1, "two"), "s"), "none": Attribute(source="s", absent=Absence.TIMEOUT)})
assert msgspec.json.decode(msgspec.json.encode(device), type=Device) == device
assert msgspec.msgpack.decode(msgspec.msgpack.encode(device), type=Device) == device

class Part(typing.TypedDict):
    needed: int
    other: typing.NotRequired[str]

class Many(msgspec.Struct):
    id: uuid.UUID
    at: datetime.datetime
    price: decimal.Decimal
    part: Part
    word: typing.Annotated[str, msgspec.Meta(max_length=3)]

many = Many(uuid.uuid4(), datetime.datetime.now(datetime.UTC), decimal.Decimal("1.5"), {"needed": 1}, "abc")
assert msgspec.json.decode(msgspec.json.encode(many), type=Many) == many
try:
    msgspec.convert({"other": "x"}, Part)
except msgspec.ValidationError:
    pass
else:
    raise AssertionError("a missing key was not noticed")
"""
    )


def test_typing_extensions_can_be_imported_afterwards():
    run(
        FEWER
        + "import sys\nassert 'typing_extensions' not in sys.modules\n"
        + "import typing_extensions, typing\nassert typing_extensions.TypedDict\n"
    )


def test_it_can_be_imported_even_if_msgspec_could_not_be():
    run("""
import sys
import hal.cli.probe
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "msgspec":
            raise ImportError("broken on purpose")
sys.meta_path.insert(0, Broken())
try:
    hal.cli.probe.with_fewer_imports()
except ImportError:
    pass
else:
    raise AssertionError("msgspec was imported all the same")
assert "typing_extensions" not in sys.modules
""")


@pytest.mark.parametrize("first", ["msgspec", "typing_extensions"])
def test_nothing_happens_where_either_was_imported_before(first):
    run(f"""
import sys, {first}
before = dict(sys.modules)
import hal.cli.probe
hal.cli.probe.with_fewer_imports()
assert all(sys.modules[name] is module for name, module in before.items())
assert ("msgspec" in sys.modules) == ("msgspec" in before)
""")
