"""The documents are true: every command of a tutorial is run, every hook, error and kind has its page."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hal
from hal import errors
from tests.compiled import keep_compiled

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TUTORIALS = sorted([ROOT / "README.md", *DOCS.glob("tutorials/*.md"), *DOCS.glob("how-to/*.md")])
_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CHECK = doctest.OutputChecker()
_LOOSE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _blocks(page: Path) -> list[tuple[str, str, str]]:
    return [(kind, info.strip(), text) for kind, info, text in _BLOCK.findall(page.read_text())]


def _commands(text: str) -> list[tuple[str, str]]:
    """Split a console block into commands and what they are said to print."""
    commands: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], ""))
        elif line.startswith("> ") and commands and not commands[-1][1]:
            commands[-1] = (commands[-1][0] + "\n" + line[2:], "")
        elif commands:
            commands[-1] = (commands[-1][0], commands[-1][1] + line + "\n")
    return commands


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_does_what_the_page_says(page: Path, tmp_path: Path):
    """A ``console`` block is run in order, one shell a command, in one folder; ``...`` stands for anything.

    ``file=NAME`` behind another language writes the block to that file first; ``no-run`` leaves a block alone (it needs
    another machine, or is what ``make`` itself does).
    """
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    environ = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_RUNTIME_DIR": str(run),
        "HAL_PROJECT": str(ROOT),
        "PYTEST_ADDOPTS": "-p no:schemathesis",  # of ours, not the reader's, and takes as long as the page's own tests
        "COLUMNS": "110",
        "LC_ALL": "C.UTF-8",
    }
    keep_compiled(tmp_path / "cache")
    work = tmp_path / "work"
    work.mkdir()
    for kind, info, text in _blocks(page):
        if "no-run" in info:
            continue
        named = re.search(r"file=(\S+)", info)
        if named:
            target = work / named.group(1)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        if kind != "console":
            continue
        for command, said in _commands(text):
            if command.startswith("export "):
                name, _, value = command[len("export ") :].partition("=")
                environ[name] = value.strip("'\"").replace("$PWD", str(work))
                continue
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=work,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=120,
                check=False,
            )
            assert _CHECK.check_output(said, done.stdout, _LOOSE), (
                f"{page.name}: $ {command}\nsaid:\n{said}\nprinted (exit {done.returncode}):\n{done.stdout}"
            )


def test_every_hook_has_its_page():
    page = (DOCS / "reference" / "hooks.md").read_text()
    from hal.drivers import hookspecs

    for name in vars(hookspecs):
        if name.startswith("hal_"):
            assert f"## {name}" in page, f"docs/reference/hooks.md does not speak of {name}"


def test_every_error_is_described():
    page = (DOCS / "reference" / "errors.md").read_text()
    for name, error in vars(errors).items():
        if inspect.isclass(error) and issubclass(error, errors.HalError):
            assert f"`{name}`" in page, f"docs/reference/errors.md does not speak of {name}"


@pytest.mark.parametrize("kind", ["gpu", "dpu", "rnic", "pmem", "upmem"])
def test_every_kind_has_its_page(kind: str):
    assert (DOCS / "reference" / "interfaces" / f"{kind}.md").exists()


def test_no_page_points_nowhere():
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} points to {target}"


def test_every_module_says_what_it_is():
    for module in pkgutil.walk_packages(hal.__path__, "hal."):
        text = importlib.import_module(module.name).__doc__
        assert text, module.name
        assert len(text.strip()) > 10, f"{module.name}: {text!r} says nothing"
