"""The compiler wrapper: the unit's data model, its memories' limits, its instructions counted, its tools by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hal.errors import DriverError, HalError, UsageError
from hal_mocks.upmem_sim import compile_program, make_sdk
from hal_mocks.upmem_sim.cli import main
from hal_mocks.upmem_sim.costs import DIV32, MUL32, MUL64, instructions
from hal_mocks.upmem_sim.counting import count_instructions
from hal_mocks.upmem_sim.longs import widen_longs
from hal_mocks.upmem_sim.options import read_options
from mocks.tests.dpus import allocated, build_host


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("long a;", "long long a;"),
        ("unsigned long int a = 10UL;", "unsigned long long int a = 10ull;"),
        ("long unsigned a = 0x5L;", "long long unsigned a = 0x5ll;"),
        ("long long a = 7LL;", "long long a = 7LL;"),
        ("long double a = 1.5L;", "long double a = 1.5L;"),
        ("f(long, long long x);", "f(long long, long long x);"),
        ('char *a = "long 1L"; char b = \'"\';', 'char *a = "long 1L"; char b = \'"\';'),
        ('# 1 "long.h"\nlong a;', '# 1 "long.h"\nlong long a;'),
        ("int longer = 1;", "int longer = 1;"),
    ],
)
def test_a_lone_long_gets_64_bits(source: str, expected: str) -> None:
    assert widen_longs(source) == expected


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("movl %eax, %ebx", 1),
        ("addl %eax, %ebx", 1),
        ("addq %rax, %rbx", 2),
        ("addl %edx, (%eax)", 3),
        ("addl (%eax), %edx", 2),
        ("addl counter(%rip), %edx", 2),
        ("movl (%eax,%ecx,4), %edx", 2),
        ("imull %eax, %ebx", MUL32),
        ("imulq %rax, %rbx", MUL64),
        ("idivl %ecx", DIV32),
        ("jne .L4", 1),
        ("call __tsan_read4", 0),
        ("nop", 0),
    ],
)
def test_what_the_unit_takes_for_an_instruction_of_the_host(line: str, count: int) -> None:
    mnemonic, _, operands = line.partition(" ")
    assert instructions(mnemonic, operands) == count


def test_each_straight_piece_of_code_is_counted_once_at_its_head() -> None:
    assembly = (
        "\t.text\nf:\n\tmovl %eax, %ebx\n\taddl %eax, %ebx\n\tjne .L2\n\tret\n.L2:\n\tret\n\t.data\nx:\n\t.long 1\n"
    )
    counted, total = count_instructions(assembly)
    assert total == 5
    assert [line.strip() for line in counted.split("\n") if "leaq" in line] == [
        "leaq\t3(%r15), %r15",
        "leaq\t1(%r15), %r15",
        "leaq\t1(%r15), %r15",
    ]


def compile_text(folder: Path, source: str, *flags: str) -> Path:
    path = folder / "kernel.c"
    path.write_text(source)
    return compile_program(("-O2", *flags, "-o", str(folder / "kernel"), str(path)))


def test_a_program_too_large_for_wram_is_refused_with_the_sum(tmp_path: Path) -> None:
    source = "#include <attributes.h>\n__host char big[60000]; int main(void) { return 0; }"
    with pytest.raises(
        DriverError, match=r"WRAM overflow by \d+ bytes: \d+ of data and 16384 of stacks for 16 tasklets"
    ):
        compile_text(tmp_path, source, "-DNR_TASKLETS=16")
    compile_text(tmp_path, source, "-DNR_TASKLETS=2")
    with pytest.raises(DriverError, match="a v1B chip has 63488"):
        compile_text(tmp_path, source, "-DNR_TASKLETS=4", "-mcpu=v1B")


def test_a_program_too_large_for_iram_is_refused(tmp_path: Path) -> None:
    lines = "".join(f"cells[{number}] ^= cells[{number + 1}] + {number};" for number in range(1000))
    with pytest.raises(DriverError, match=r"IRAM overflow: about \d+ instructions .* has 4096"):
        compile_text(tmp_path, f"volatile int cells[1001]; int main(void) {{ {lines} return 0; }}", "-O0")


def test_a_mistake_in_c_is_told_in_the_compiler_s_words(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match=r"(?s)the compiler refused:.*kernel\.c.*error"):
        compile_text(tmp_path, "int main(void) { return undeclared; }")
    with pytest.raises(DriverError, match=r"undefined reference to .undeclared"):
        compile_text(tmp_path, "int undeclared(void); int main(void) { return undeclared(); }")


def test_parts_are_compiled_by_themselves_and_linked(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text(
        "#include <defs.h>\nint f(int); __host int out; int main(void) { out = f(20); return 0; }"
    )
    (tmp_path / "b.c").write_text("int f(int x) { return x * 2 + 2; }")
    parts = [compile_program(("-c", "-O1", "-o", str(tmp_path / f"{n}.o"), str(tmp_path / f"{n}.c"))) for n in "ab"]
    program = compile_program(("-o", str(tmp_path / "program"), *map(str, parts)))
    with allocated() as dpus:
        dpus.load(program)
        dpus.launch()
        assert dpus.number(0, "out") == 42


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-O2",), "no input files"),
        (("-DNR_TASKLETS=25", "a.c"), "a v1A chip runs 1 to 24 tasklets"),
        (("-DNR_TASKLETS=17", "-mcpu=v1B", "a.c"), "a v1B chip runs 1 to 16 tasklets"),
        (("-DSTACK_SIZE_DEFAULT=100", "a.c"), "a multiple of 8"),
        (("-mcpu=v9", "a.c"), "no such chip"),
        (("a.c", "-o"), "-o needs a value"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_options(arguments)


def test_stacks_are_those_of_the_command_line() -> None:
    options = read_options(("-DNR_TASKLETS=3", "-DSTACK_SIZE_DEFAULT=512", "-DSTACK_SIZE_TASKLET_1=2048", "a.c"))
    assert options.stacks == (512, 2048, 512)
    assert read_options(("a.c",)).stacks == (1024,)


def test_the_command_says_what_is_wrong_and_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-o", "x", "nothing.c"]) == 1
    assert "no such file: nothing.c" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "hal-dpucc --sdk FOLDER" in capsys.readouterr().out


HOST = """
#include <dpu.h>
#include <dpu_log.h>
int main(int argc, char **argv)
{
    struct dpu_set_t set, rank, dpu;
    uint32_t ranks, dpus, index, seen = 0, sum = 0;
    (void)argc;
    DPU_ASSERT(dpu_alloc(70, "backend=simulator", &set));
    DPU_ASSERT(dpu_load(set, argv[1], NULL));
    DPU_ASSERT(dpu_get_nr_ranks(set, &ranks));
    DPU_RANK_FOREACH(set, rank) {
        DPU_ASSERT(dpu_get_nr_dpus(rank, &dpus));
        DPU_FOREACH(rank, dpu) {
            seen++;
        }
    }
    DPU_FOREACH(set, dpu, index) {
        DPU_ASSERT(dpu_copy_to(dpu, "value", 0, &index, sizeof index));
    }
    DPU_ASSERT(dpu_launch(set, DPU_SYNCHRONOUS));
    uint32_t values[70];
    DPU_FOREACH(set, dpu, index) {
        DPU_ASSERT(dpu_prepare_xfer(dpu, &values[index]));
    }
    DPU_ASSERT(dpu_push_xfer(set, DPU_XFER_FROM_DPU, "value", 0, sizeof *values, DPU_XFER_DEFAULT));
    for (index = 0; index < 70; index++) {
        sum += values[index];
    }
    printf("%u ranks, %u in the last, %u dpus, sum %u\\n", ranks, dpus, seen, sum);
    DPU_FOREACH(set, dpu) {
        DPU_ASSERT(dpu_log_read(dpu, stdout));
        break;
    }
    DPU_ASSERT(dpu_free(set));
    DPU_ASSERT(dpu_copy_to((struct dpu_set_t) { 0 }, "value", 0, &sum, 4));
    return 0;
}
"""
KERNEL = '#include <stdio.h>\n__host unsigned value; int main(void) { value *= 2; puts("hello"); return 0; }'


def test_a_host_program_in_c_and_the_sdk_s_tools_work_together(tmp_path: Path) -> None:
    home = make_sdk(tmp_path / "sdk")
    (tmp_path / "host.c").write_text(HOST)
    (tmp_path / "kernel.c").write_text(KERNEL)
    script = (
        ". sdk/upmem_env.sh; dpu-upmem-dpurte-clang -O2 -flto -g -DNR_TASKLETS=1 -o kernel kernel.c && "
        "cc -std=c11 -Wall -Wextra -Werror host.c $(dpu-pkg-config --cflags --libs dpu) -o host && ./host ./kernel"
    )
    environ = {**os.environ, "HAL_UPMEM_RANKS": "2"}
    ended = subprocess.run(("sh", "-c", script), cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert ended.stdout == "2 ranks, 6 in the last, 70 dpus, sum 4830\n=== DPU#0x0 ===\nhello\n", ended.stderr
    assert "DPU Error (no program has been loaded" in ended.stderr or "invalid action" in ended.stderr
    assert make_sdk(home) == home
    with pytest.raises(HalError, match="is there already"):
        make_sdk(tmp_path)


def test_a_program_can_be_part_of_its_host(tmp_path: Path) -> None:
    (tmp_path / "kernel.c").write_text(KERNEL)
    compile_program(("-O2", "-o", str(tmp_path / "kernel"), str(tmp_path / "kernel.c")))
    (tmp_path / "host.c").write_text(
        f"""
#include <dpu.h>
DPU_INCBIN(kernel, "{tmp_path}/kernel")
int main(void)
{{
    struct dpu_set_t set;
    DPU_ASSERT(dpu_alloc(1, NULL, &set));
    DPU_ASSERT(dpu_load_from_incbin(set, &kernel, NULL));
    DPU_ASSERT(dpu_launch(set, DPU_SYNCHRONOUS));
    DPU_ASSERT(dpu_log_read(set, stdout));
    return 0;
}}
"""
    )
    build_host(tmp_path / "host.c", tmp_path / "host")
    assert subprocess.run((tmp_path / "host",), capture_output=True, check=True).stdout == b"=== DPU#0x0 ===\nhello\n"


def test_the_module_is_the_command() -> None:
    ended = subprocess.run((sys.executable, "-m", "hal_mocks.upmem_sim"), capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "usage: hal-dpucc" in ended.stdout + ended.stderr
