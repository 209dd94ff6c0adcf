from __future__ import annotations

import os
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hal_mocks.profile import load_profile
from hal_mocks.sysfs import tree_of
from hal_mocks.sysfs_files import FIFO, FOLDER, Files, Link, relative, write_all, write_changes

entries = st.dictionaries(
    st.sampled_from(["a/x", "a/y", "a/z/w", "b", "c/d/e/f", "c/d/g", "h/i"]),
    st.binary(max_size=3) | st.just(FIFO) | st.just(FOLDER) | st.sampled_from([Link("x"), Link("../b")]),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(entries, entries)
def test_changing_a_tree_leaves_what_writing_it_anew_would(tmp_path, before, after):
    write_all(str(tmp_path / "changed"), before)
    write_changes(str(tmp_path / "changed"), before, after)
    write_all(str(tmp_path / "fresh"), after)
    assert _listing(tmp_path / "changed") == _listing(tmp_path / "fresh")


def _listing(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            key = str(path.relative_to(root))
            if path.is_symlink():
                found[key] = os.readlink(path)
            elif path.is_dir():
                found[key] = "folder"
            else:
                found[key] = "fifo" if path.is_fifo() else path.read_bytes()
    return found


paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join)


@given(paths, paths)
def test_a_relative_link_leads_to_its_target(path, target):
    here = os.path.dirname(path)
    assert os.path.normpath(os.path.join("/", here, relative(path, target))) == os.path.normpath("/" + target)


def test_a_tree_is_a_function_of_host_and_faults():
    (host,) = load_profile("dgx-h100").hosts
    assert tree_of(host) == tree_of(host)
    files = Files()
    files.file("a", 1)
    assert files.entries == {"a": b"1\n"}
