"""A program that asks NVML through unmodified nvidia-ml-py, in a process of its own, told line by line what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

_PROGRAM = """
import ctypes, json, sys
import pynvml as n
scope = {"n": n, "ctypes": ctypes}
exec('''
handles = {}
def gpu(index=0):
    handle = n.nvmlDeviceGetHandleByIndex(index)
    handles[address(handle)] = index
    return handle
def address(handle):
    return ctypes.cast(handle, ctypes.c_void_p).value
def error(call, *arguments):
    try:
        call(*arguments)
    except n.NVMLError as raised:
        return raised.value
    return 0
def profile(gpu, number):
    return n.nvmlDeviceGetGpuInstanceProfileInfo(gpu, number)
def place(start, size):
    placement = n.c_nvmlGpuInstancePlacement_t()
    placement.start, placement.size = start, size
    return ctypes.byref(placement)
def wait(events, milliseconds):
    try:
        event = n.nvmlEventSetWait_v2(events, milliseconds)
    except n.NVMLError_Timeout:
        return None
    whose = handles[address(event.device)]
    return [whose, event.eventType, event.eventData, event.gpuInstanceId, event.computeInstanceId]
''', scope)
if "--no-init" not in sys.argv:
    n.nvmlInit()
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    code = json.loads(line)
    try:
        try:
            answer = eval(code, scope)
        except SyntaxError:
            answer = exec(code, scope)
    except Exception as raised:
        answer = {"raised": repr(raised)}
    print(json.dumps(answer, default=str), flush=True)
"""


class Program:
    """One such process. Ask it by :meth:`__call__`: a Python expression (or statements) over ``n``, which is pynvml."""

    def __init__(self, environ: Mapping[str, str], *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environ},
        )
        assert self._read() == "ready"

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the program has ended"
        return json.loads(line)

    def send(self, code: str) -> None:
        """Ask, and do not wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(code) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Return the answer to what was asked before."""
        answer = self._read()
        if isinstance(answer, dict) and "raised" in answer:
            raise AssertionError(answer["raised"])
        return answer

    def __call__(self, code: str) -> Any:
        """Ask, and return the answer as JSON carries it."""
        self.send(code)
        return self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.kill()
        self._process.wait()
