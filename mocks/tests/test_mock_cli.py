from __future__ import annotations

import pytest

from hal_mocks.cli import main
from hal_mocks.profile import PROFILES, profile_names


@pytest.fixture
def environ(tmp_path):
    return {"HAL_MACHINE": f"dgx-h100?state={tmp_path / 'state'}&clock=virtual"}


@pytest.fixture
def run(environ, capsys):
    def call(*arguments: str, **more: str) -> tuple[int, str, str]:
        try:
            code = main(arguments, {**environ, **more})
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_it_lists_its_profiles_with_a_line_each(run):
    code, out, _ = run("profiles")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == profile_names()


def test_it_shows_what_a_profile_describes(run):
    code, out, _ = run("show", "edge-soc")
    assert code == 0
    assert "Orin" in out
    assert "integrated" in out
    assert run("show", "dgx-hall")[1].count("\n") < 1000


def test_it_checks_a_profile_and_names_the_line_of_a_mistake(run, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text((PROFILES / "edge-soc.toml").read_text())
    assert run("check", str(path))[0] == 0
    path.write_text('[[numa]]\ncores = 1\n[[gpu]]\nmodel = "H100"\n')
    code, _, err = run("check", str(path))
    assert code == 64
    assert f"{path}:4: gpu.model: unknown gpu model 'H100'" in err
    assert "H100-SXM5-80GB" in err


def test_it_breaks_lists_advances_and_mends(run):
    code, out, _ = run("fault", "gpu0", "xid", "--code", "79", "--for", "30", "--after", "5")
    assert code == 0
    assert out.startswith("fault 1: xid on GPU-")
    assert "xid 79  in 5.0 s" in run("faults")[1]
    assert run("advance", "10")[0] == 0
    assert "xid 79  now, 25.0 s left" in run("faults")[1]
    run("advance", "100")
    assert "over" in run("faults")[1]
    assert run("heal", "gpu0")[1] == "1 fault healed\n"
    assert run("faults")[1] == ""


def test_it_renders_the_tree_as_the_faults_make_it(run, tmp_path):
    run("fault", "gpu0", "fallen-off-bus")
    code, out, _ = run("render", str(tmp_path / "trees"))
    assert code == 0
    functions = tmp_path / "trees/dgx-h100/sys/bus/pci/devices"
    assert out.strip() == str(tmp_path / "trees/dgx-h100")
    assert not (functions / "0000:18:00.0").exists()
    assert (functions / "0000:19:00.0").is_dir()


def test_it_does_not_write_over_a_folder_that_is_something_else(run, tmp_path):
    (tmp_path / "dgx-h100").mkdir()
    (tmp_path / "dgx-h100" / "thesis.txt").write_text("mine")
    code, _, err = run("render", str(tmp_path))
    assert code == 64
    assert "no rendered host" in err
    assert (tmp_path / "dgx-h100" / "thesis.txt").read_text() == "mine"


def test_reset_forgets_the_faults(run):
    run("fault", "gpu0", "lost")
    assert run("reset")[0] == 0
    assert run("faults")[1] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required"),
        (("frobnicate",), "invalid choice"),
        (("fault", "gpu0"), "required"),
        (("fault", "gpu0", "flue"), "unknown fault 'flue'"),
        (("fault", "gpu0", "bad-block"), "does not happen to a gpu"),
        (("fault", "gpu0", "lost", "--for", "soon"), "invalid float"),
        (("fault", "gpu0", "xid", "--code", "many"), "'many' is no whole number"),
        (("fault", "gpu0", "xid"), "try: --code 79"),
        (("advance", "-1"), ""),
        (("show", "dgx"), "no profile is called 'dgx'"),
    ],
)
def test_a_command_that_makes_no_sense_exits_with_64_and_says_why(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (64, "")
    assert message in err


def test_a_device_that_is_not_there_exits_with_1(run):
    code, _, err = run("fault", "gpu9", "lost")
    assert code == 1
    assert "gpu9" in err


def test_without_a_machine_it_says_how_to_name_one(run):
    code, _, err = run("faults", HAL_MACHINE="")
    assert code == 64
    assert "HAL_MACHINE=dgx-h100" in err


def test_real_time_cannot_be_advanced(run, tmp_path):
    code, _, err = run("advance", "1", HAL_MACHINE=f"dgx-h100?state={tmp_path}")
    assert code == 64
    assert "clock=virtual" in err


def test_a_power_failure_says_what_was_lost(run, tmp_path):
    machine = f"optane-server?state={tmp_path}"
    code, out, _ = run("power-failure", "region0", HAL_MACHINE=machine)
    assert code == 0
    assert "0 words of 8 bytes in 0 cache lines were not durable, 0 are lost" in out
    assert len(run("power-failure", HAL_MACHINE=machine)[1].splitlines()) == 2
    assert run("power-failure", "region7", HAL_MACHINE=machine)[0] == 1


def test_a_folder_that_is_somebody_elses_is_named_with_a_way_out(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run("faults", HAL_MACHINE=f"dgx-h100?state={tmp_path / 'file'}")
    assert code == 1
    assert f"{tmp_path / 'file'}" in err
    assert "try: HAL_MACHINE=PROFILE?state=FOLDER" in err
    code, _, err = run("render", str(tmp_path / "file"))
    assert code == 1
    assert "try:" in err
