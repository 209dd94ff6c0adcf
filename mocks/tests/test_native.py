"""Stand-ins in C are compiled once, by whoever comes first, and a missing compiler is said in one line."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hal.errors import DriverError, NotReady
from hal_mocks.native import build

SOURCE = "int answer(void) { return ANSWER; }\n"


def _environ(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path / "cache"), **more}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.c"
    path.write_text(SOURCE)
    return path


def test_a_library_is_compiled_once(tmp_path: Path, source: Path) -> None:
    first = build("libanswer.so", [source], flags=["-DANSWER=42"], environ=_environ(tmp_path))
    written_at = first.stat().st_mtime_ns
    assert build("libanswer.so", [source], flags=["-DANSWER=42"], environ=_environ(tmp_path)) == first
    assert first.stat().st_mtime_ns == written_at
    assert ctypes.CDLL(str(first)).answer() == 42
    assert [path.name for path in first.parent.iterdir()] == ["libanswer.so"]


def test_other_flags_headers_or_sources_make_another_one(tmp_path: Path, source: Path) -> None:
    environ = _environ(tmp_path)
    header = tmp_path / "answer.h"
    header.write_text("")
    made = {build("libanswer.so", [source, header], flags=["-DANSWER=42"], environ=environ)}
    made.add(build("libanswer.so", [source, header], flags=["-DANSWER=43"], environ=environ))
    header.write_text("/* changed */")
    made.add(build("libanswer.so", [source, header], flags=["-DANSWER=42"], environ=environ))
    source.write_text(SOURCE + "\n")
    made.add(build("libanswer.so", [source, header], flags=["-DANSWER=42"], environ=environ))
    assert len(made) == 4


def test_a_name_without_so_is_a_program(tmp_path: Path) -> None:
    source = tmp_path / "main.c"
    source.write_text("int main(void) { return 7; }\n")
    program = build("seven", [source], environ=_environ(tmp_path))
    assert subprocess.run([program], check=False).returncode == 7


def test_processes_that_build_at_once_all_get_it(tmp_path: Path, source: Path) -> None:
    code = (
        "import ctypes, pathlib, sys\nfrom hal_mocks.native import build\n"
        f"made = build('libanswer.so', [pathlib.Path({str(source)!r})], flags=['-DANSWER=42'])\n"
        "sys.exit(ctypes.CDLL(str(made)).answer() != 42)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **_environ(tmp_path)}) for _ in range(3)
    ]
    assert [process.wait(60) for process in running] == [0, 0, 0]


def test_without_a_compiler_the_error_says_what_to_install(tmp_path: Path, source: Path) -> None:
    with pytest.raises(NotReady, match=r"no C compiler.*apt install gcc libc6-dev"):
        build("libanswer.so", [source], environ=_environ(tmp_path, PATH=str(tmp_path)))


def test_a_compiler_that_refuses_is_quoted(tmp_path: Path, source: Path) -> None:
    with pytest.raises(DriverError, match=r"answer\.c:1.*ANSWER"):
        build("libanswer.so", [source], environ=_environ(tmp_path))
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, source: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DriverError, match="XDG_CACHE_HOME"):
        build("libanswer.so", [source], flags=["-DANSWER=42"], environ=_environ(tmp_path))
