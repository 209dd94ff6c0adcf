"""Runs inside the guest: does what the host asks over a virtio serial port, and says what came of it.

Messages are lines of JSON. The host sends ``{"id": 1, "do": "run", "argv": [...], "env": {...}, "cwd": "/", "input":
"", "timeout": 10}``, ``{"id": 2, "do": "kill", "of": 1, "signal": 15}``, ``{"id": 3, "do": "read", "path": "/x"}`` or
``{"id": 4, "do": "write", "path": "/x", "data": "<base64>"}``. A run answers with ``{"id": 1, "out": "..."}`` or
``"err"`` as text comes, and last ``{"id": 1, "exit": 0, "seconds": 0.1}``; everything else with one message, ``data``
or ``error``. Only the standard library is used, and few of its modules: the interpreter starts before all else.
"""

import base64
import glob
import json
import os
import signal
import subprocess
import sys
import threading
import time

PORT = "hal.lab"


class Agent:
    """Serves one port; every program runs in a process group of its own."""

    def __init__(self, port):
        self._port = port
        self._lock = threading.Lock()
        self._running = {}

    def serve(self):
        """Answer until the host hangs up."""
        self.say({"ready": True, "uptime": uptime()})
        for line in self._port:
            request = json.loads(line)
            try:
                getattr(self, "_" + request["do"])(request)
            except OSError as error:
                self.say({"id": request["id"], "error": str(error)})

    def say(self, message):
        """Send a message whole."""
        with self._lock:
            self._port.write(json.dumps(message).encode() + b"\n")
            self._port.flush()

    def _run(self, request):
        process = subprocess.Popen(
            request["argv"],
            env=request["env"],
            cwd=request.get("cwd"),
            stdin=subprocess.PIPE if request.get("input") else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._running[request["id"]] = process
        threading.Thread(target=self._attend, args=(request, process), daemon=True).start()

    def _attend(self, request, process):
        start = time.monotonic()
        number = request["id"]
        pumps = [
            threading.Thread(target=self._pump, args=(number, name, stream), daemon=True)
            for name, stream in (("out", process.stdout), ("err", process.stderr))
        ]
        for pump in pumps:
            pump.start()
        if process.stdin is not None:
            try:
                process.stdin.write(request["input"].encode())
                process.stdin.close()
            except BrokenPipeError:
                pass
        late = False
        try:
            process.wait(request["timeout"])
        except subprocess.TimeoutExpired:
            late = True
        self._end(process, signal.SIGKILL)  # what it left behind holds the pipes open
        process.wait()
        for pump in pumps:
            pump.join()
        process.stdout.close()
        process.stderr.close()
        self._running.pop(number, None)
        seconds = round(time.monotonic() - start, 3)
        self.say({"id": number, "exit": process.returncode, "late": late, "seconds": seconds})

    def _pump(self, number, name, stream):
        while True:
            data = os.read(stream.fileno(), 65536)
            if not data:
                return
            self.say({"id": number, name: data.decode("utf-8", "replace")})

    def _kill(self, request):
        process = self._running.get(request["of"])
        if process is not None:
            self._end(process, request["signal"])
        self.say({"id": request["id"], "data": ""})

    def _end(self, process, number):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass

    def _read(self, request):
        with open(request["path"], "rb") as file:
            self.say({"id": request["id"], "data": base64.b64encode(file.read()).decode()})

    def _write(self, request):
        # One write, without truncation: files of sysfs take their value so.
        made = 0 if request["path"].startswith(("/sys/", "/proc/")) else os.O_CREAT
        descriptor = os.open(request["path"], os.O_WRONLY | made)
        try:
            os.write(descriptor, base64.b64decode(request["data"]))
        finally:
            os.close(descriptor)
        self.say({"id": request["id"], "data": ""})


def uptime():
    """Seconds since the kernel started."""
    with open("/proc/uptime") as file:
        return float(file.read().split()[0])


def open_port():
    """Return the serial port that is named for us, once the driver has made it."""
    while True:
        for path in glob.glob("/sys/class/virtio-ports/*/name"):
            with open(path) as file:
                if file.read().strip() == PORT:
                    return open("/dev/" + path.split("/")[-2], "r+b", buffering=0)
        time.sleep(0.01)


class Lines:
    """A port read by lines and written whole; a file object of Python's can do both only where it can seek."""

    def __init__(self, raw):
        self._raw = raw
        self._rest = b""

    def __iter__(self):
        while True:
            while b"\n" not in self._rest:
                data = os.read(self._raw.fileno(), 65536)
                if not data:
                    return
                self._rest += data
            line, _, self._rest = self._rest.partition(b"\n")
            yield line

    def write(self, data):
        """Write all of it."""
        while data:
            data = data[os.write(self._raw.fileno(), data) :]

    def flush(self):
        """Nothing is kept back."""


if __name__ == "__main__":
    Agent(Lines(open_port())).serve()
    sys.exit(0)
