"""As much of podman's command line as the plugin uses; a container is a process group of this machine."""

from __future__ import annotations

import os
import sys

if not (os.path.isdir(sys.argv[1]) and os.listdir(sys.argv[1])) and sys.argv[2] == "ps":
    print("[]")  # the answer to most questions, before the imports: a command is run hundreds of times
    sys.exit(0)

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _run(state: Path, words: list[str]) -> int:
    box: dict[str, object] = {"Labels": {}}
    env = dict(os.environ)
    while words[0] != "--":
        word = words.pop(0)
        if word == "--name":
            box["name"] = words.pop(0)
        elif word == "--label":
            key, _, value = words.pop(0).partition("=")
            box["Labels"][key] = value  # type: ignore[index]
        elif word == "--env":
            key, _, value = words.pop(0).partition("=")
            env[key] = value
        elif word != "--detach":
            words.pop(0)
    _, _image, *command = words
    folder = state / str(box["name"])
    if folder.exists():
        print(f"Error: the container name {box['name']} is already in use", file=sys.stderr)
        return 125
    if shutil.which(command[0]) is None:
        print(f"Error: crun: executable file `{command[0]}` not found: No such file or directory", file=sys.stderr)
        return 127
    folder.mkdir(parents=True)
    # A keeper outlives this command and writes down how the container ended.
    keeper = os.fork()
    if keeper == 0:
        os.setsid()
        with (folder / "log").open("wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.close(0)
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
        box.update(Pid=process.pid, StartedAt=time.time())
        (folder / "new").write_text(json.dumps(box))
        (folder / "new").rename(folder / "box")
        code = process.wait()
        (folder / "ended").write_text(str(128 - code if code < 0 else code))
        os._exit(0)
    while not (folder / "box").exists():
        time.sleep(0.002)
    print(box["name"])
    return 0


def _kill(folder: Path, number: int) -> None:
    pid = json.loads((folder / "box").read_text())["Pid"]
    if not (folder / "ended").exists() and _alive(pid):
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            return


def _end(folder: Path, grace: float) -> None:
    _kill(folder, signal.SIGTERM if grace > 0 else signal.SIGKILL)
    until = time.monotonic() + grace
    killed = grace <= 0
    while not (folder / "ended").exists():
        if not killed and time.monotonic() > until:
            _kill(folder, signal.SIGKILL)
            killed = True
        time.sleep(0.005)


def main(state: Path, verb: str, *rest: str) -> int:
    words = list(rest)
    state.mkdir(parents=True, exist_ok=True)
    boxes = [folder for folder in sorted(state.iterdir()) if (folder / "box").exists()]
    if verb == "run":
        return _run(state, words)
    if verb == "ps":
        label = words[-1].removeprefix("label=")
        found = []
        for folder in boxes:
            box = json.loads((folder / "box").read_text())
            if label in [f"{key}={value}" for key, value in box["Labels"].items()]:
                ended = folder / "ended"
                box.update(Names=[folder.name], State="exited" if ended.exists() else "running")
                box["ExitCode"] = int(ended.read_text() or 0) if ended.exists() else 0
                found.append(box)
        print(json.dumps(found))
    elif verb == "stop":
        _end(state / words[2], float(words[1]))
    elif verb == "rename":
        (state / words[0]).rename(state / words[1])
    elif verb == "rm":
        folder = state / words[-1]
        if (folder / "box").exists():
            _end(folder, 0)
        shutil.rmtree(folder, ignore_errors=True)
    elif verb == "logs":
        sys.stdout.write((state / words[0] / "log").read_text())
    elif verb == "standin-reset":
        for folder in boxes:
            _end(folder, 0)
            shutil.rmtree(folder)
    else:
        print(f"Error: unrecognized command `podman {verb}`", file=sys.stderr)
        return 125
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
