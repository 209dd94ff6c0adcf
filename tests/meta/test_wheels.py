"""The wheels hold what they should, and a stranger's plugin works without touching the core."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))


def _build(source: Path, target: Path) -> Path:
    before = set(target.glob("*.whl"))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", target],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,) = set(target.glob("*.whl")) - before
    return wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    target = tmp_path_factory.mktemp("wheels")
    return {
        name: _build(source, target)
        for name, source in (("hal", ROOT), ("mocks", ROOT / "mocks"), *((path.name, path) for path in PLUGINS))
    }


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_core_wheel_holds_the_core_and_nothing_else(wheels: dict[str, Path]):
    names = _names(wheels["hal"])
    assert {"hal/py.typed", "hal/testing/conformance.py"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"hal"}


def test_the_mocks_wheel_brings_its_profiles(wheels: dict[str, Path]):
    shipped = {path.name for path in (ROOT / "mocks/src/hal_mocks/profiles").glob("*.toml")}
    assert shipped
    assert {f"hal_mocks/profiles/{name}" for name in shipped} <= _names(wheels["mocks"])


def test_the_mocks_wheel_brings_what_is_compiled_on_first_use(wheels: dict[str, Path]):
    source = ROOT / "mocks/src"
    code = {str(path.relative_to(source)) for path in source.rglob("*") if path.suffix in (".c", ".h", ".S", ".lds")}
    assert code
    assert code <= _names(wheels["mocks"])


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugins_wheel_holds_its_package_and_says_it_is_a_plugin(plugin: Path, wheels: dict[str, Path]):
    names = _names(wheels[plugin.name])
    package = f"hal_{plugin.name}"
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {package}
    assert f"{package}/py.typed" in names
    with zipfile.ZipFile(wheels[plugin.name]) as archive:
        (entry,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "[hal.plugins]" in archive.read(entry).decode()


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_says_what_it_drives_and_what_was_verified(plugin: Path):
    text = (plugin / "README.md").read_text()
    for word in ("rivilege", "erified"):
        assert word in text, f"{plugin.name}/README.md does not speak of it: {word}"


def test_no_vendor_library_is_needed_by_the_core(wheels: dict[str, Path]):
    with zipfile.ZipFile(wheels["hal"]) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        text = archive.read(metadata).decode()
    needed = {
        re.split(r"[<>=,; ]", line.split(":")[1].strip())[0]
        for line in text.splitlines()
        if line.startswith("Requires-Dist") and "extra" not in line
    }
    of_the_server = {"httptools", "pyjwt", "starlette", "uvicorn"}
    assert needed == {"cel-python", "msgspec", "numpy", "pluggy", "pyyaml", "shtab", *of_the_server}


def test_the_example_plugin_appears_in_a_fresh_environment(wheels: dict[str, Path], tmp_path: Path):
    fresh = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", fresh], check=True)
    # this environment's pip, and no byte code of what nobody imports: most of the time goes there
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", fresh / "bin" / "python"]
    install = [*pip, "install", "--quiet", "--no-compile"]
    subprocess.run([*install, wheels["hal"]], check=True, capture_output=True)
    from hal_example.tree import write_tree

    tree = tmp_path / "machine"
    write_tree(tree, cards=2)
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HAL_SYSFS_ROOT": str(tree)}

    def devices() -> set[str]:
        done = subprocess.run(
            [fresh / "bin" / "hal-probe", "--format", "json"], env=environ, capture_output=True, text=True, check=False
        )
        return {device["driver"] for device in json.loads(done.stdout)["devices"]}

    assert "example" not in devices()
    subprocess.run([*install, wheels["example"]], check=True, capture_output=True)
    assert "example" in devices()
