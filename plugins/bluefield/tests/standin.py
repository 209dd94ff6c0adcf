"""A card without a card: a rendered tree with rshim files, a Redfish server behind TLS, and an sshd for its cores.

Redfish over TLS, OpenSSH and its client are the real ones. ``podman`` and ``tc`` on the card's path are programs of
ours (``standin_podman.py``, ``standin_tc.py``), as there is neither a container image nor a kernel with tc-flower on
every machine that runs the tests. A reset runs through the boot states in some hundredths of a second.
"""

from __future__ import annotations

import base64
import datetime
import getpass
import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hal.drivers.contract import HostRoot
from hal_mocks.machine import open_machine
from hal_mocks.sysfs import render

HERE = Path(__file__).parent
STAGES = (("BootRom", "rom"), ("UEFI", "uefi"), ("OsStarting", "os"), ("OsIsRunning", "ready"))
PASSWORD = "a password with spaces"


class Bmc(BaseHTTPRequestHandler):
    """The Redfish side. What it serves is the stand-in's state; ``broken`` answers in its place."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    card: StandIn

    def log_message(self, format: str, *args: object) -> None:
        """Be silent."""

    def _answer(self, code: int, body: object = None) -> None:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        wanted = "Basic " + base64.b64encode(f"root:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != wanted:
            self._answer(401, {"error": {"message": "no"}})
            return
        card = self.card
        if card.broken is not None:
            self._answer(*card.broken)
            return
        route = (self.command, self.path)
        card.requests.append(route)
        self._answer(*card.redfish(self.command, self.path, json.loads(body) if body else {}))

    do_GET = do_POST = do_PATCH = _serve  # noqa: N815 - the server's own names


class BmcServer(ThreadingHTTPServer):
    """A server that says nothing of clients who do not trust it."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Be silent: the client tells what went wrong."""


class StandIn:
    """One BlueField-3 in DPU mode, in a tree of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        machine = open_machine({"HAL_MACHINE": f"bluefield-host?state={folder / 'machine'}"})
        assert machine is not None
        (root,) = render(machine)
        assert root.root is not None
        self.root = Path(root.root)
        self.host = HostRoot(node="dpu-host", root=str(self.root))
        dpu = machine.graph.hosts[0].dpus[0]
        self.serial, self.id = dpu.serial, f"dpu-{dpu.serial}"
        self.functions = dpu.pci
        self.rshim = self.root / "dev" / str(dpu.rshim)
        (self.rshim / "console").unlink()
        os.mkfifo(self.rshim / "console")
        self._console = os.open(self.rshim / "console", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.closing: list[Callable[[], None]] = []
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self.bin = folder / "bin"
        self._install_tools()
        self._serve_redfish()
        self._serve_ssh()
        self.renew()
        self._watcher = threading.Thread(target=self._watch_misc, daemon=True)
        self._watcher.start()

    # The card's own life

    def renew(self) -> None:
        """Be a card as it came, for the next test: in DPU mode, ready, nothing on its cores."""
        self.mode, self.next_mode = "DpuMode", "DpuMode"
        self.boots = 0
        self.enter(len(STAGES) - 1)
        self.stuck = self.deaf = False
        self._paused = False
        self.temperature: dict[str, Any] = {
            "Reading": 61.5,
            "Thresholds": {"UpperCaution": {"Reading": 95}, "UpperCritical": {"Reading": 105}},
        }
        self.allowed = ["ForceRestart", "PowerCycle"]
        self.broken: tuple[int, object] | None = None
        self.requests: list[tuple[str, str]] = []
        for address in self.functions[:2]:
            function = self.root / "sys" / "bus" / "pci" / "devices" / address
            (function / "sriov_totalvfs").write_text("8\n")
            (function / "sriov_numvfs").write_text("0\n")
        self.stop_services()
        while self.closing:
            self.closing.pop()()
        shutil.rmtree(self.folder / "tc", ignore_errors=True)
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        os.truncate(self.rshim / "boot", 0)
        try:
            while os.read(self._console, 1 << 16):
                pass
        except BlockingIOError:
            pass
        self.write_misc()

    def restart(self, *, cold: bool = False) -> None:
        """Boot through all stages; what ran on the cores is gone."""
        if self.deaf:
            return
        with self._lock:
            self.stop_services()
            shutil.rmtree(self.folder / "tc", ignore_errors=True)
            if cold:
                self.mode = self.next_mode
            self.boots += 1
            last = 1 if self.mode == "NicMode" else len(STAGES) - 1
            for stage in range(len(STAGES)):
                self.enter(stage)
                os.write(self._console, f"[{stage}.000000] {STAGES[stage][0]}\r\n".encode())
                if stage == last or self._ending.wait(0.01) or self.stuck:
                    break
            self.write_misc()

    def pause_watching(self) -> None:
        """Let the test have rshim's files to itself."""
        self._paused = True

    def enter(self, stage: int) -> None:
        """Be in a stage from now on; state and time change together, as one answer tells both."""
        moment = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)
        entered = moment + datetime.timedelta(seconds=self.boots * 10 + stage)
        self.progress = {"OemLastState": STAGES[stage][0], "LastStateTime": entered.isoformat()}

    def write_misc(self, mode: str | None = None) -> None:
        """Let rshim's misc file say the mode."""
        words = mode or {"DpuMode": "DPU mode", "NicMode": "NIC mode"}[self.mode]
        text = "\n".join(
            (
                "DISPLAY_LEVEL   0 (0:basic, 1:advanced, 2:log)",
                "SW_RESET        0 (1: reset)",
                f"DEV_NAME        pcie-{self.functions[-1]}",
                "DEV_INFO        BlueField-3(Rev 1)",
                f"BF_MODE         {words}",
            )
        )
        fresh = self.rshim / "misc.new"
        fresh.write_text(text + "\n")
        fresh.replace(self.rshim / "misc")

    def _watch_misc(self) -> None:
        size = 0
        while not self._ending.wait(0.005):
            if self._paused:
                continue
            head = (self.rshim / "misc").read_bytes()[:16]
            pushed = (self.rshim / "boot").stat().st_size
            if head.startswith(b"SW_RESET 1") or pushed > size:
                self.restart()
            elif head.startswith(b"DISPLAY_LEVEL 2\n"):
                self.write_misc()
            size = pushed

    def redfish(self, verb: str, path: str, body: dict[str, Any]) -> tuple[int, object]:
        """Answer one request."""
        system = "/redfish/v1/Systems/Bluefield"
        sensors = "/redfish/v1/Chassis/Card1/Sensors"
        if verb == "GET":
            answers: dict[str, Callable[[], object]] = {
                system: lambda: {
                    "PowerState": "On",
                    "BootProgress": self.progress,
                    "ProcessorSummary": {"CoreCount": 16},
                    "MemorySummary": {"TotalSystemMemoryGiB": 32},
                    "Actions": {
                        "#ComputerSystem.Reset": {
                            "target": f"{system}/Actions/ComputerSystem.Reset",
                            "ResetType@Redfish.AllowableValues": self.allowed,
                        }
                    },
                },
                f"{system}/Oem/Nvidia": lambda: {"Mode": self.mode},
                "/redfish/v1/UpdateService/FirmwareInventory/DPU_OS": lambda: {"Version": "stand-in 1.0"},
                f"{sensors}/bluefield_temp": lambda: self.temperature,
                f"{sensors}/total_power": lambda: {"Reading": 44, "ReadingUnits": "W"},
            }
            make = answers.get(path)
            return (200, make()) if make is not None else (404, {"error": {"message": "no such resource"}})
        if path == f"{system}/Oem/Nvidia/Actions/Mode.Set":
            self.next_mode = body["Mode"]
            return 200, {}
        if path == f"{system}/Actions/ComputerSystem.Reset":
            cold = body["ResetType"] == "PowerCycle"
            threading.Thread(target=self.restart, kwargs={"cold": cold}, daemon=True).start()
            return 204, None
        return 404, {"error": {"message": "no such action"}}

    # Tools on the card, and the ways to it

    def _install_tools(self) -> None:
        self.bin.mkdir(parents=True)
        for name in ("podman", "tc"):
            tool = self.bin / name
            tool.write_text(
                f"#!{sys.executable} -IS\nimport sys, runpy\nsys.path.insert(0, {str(HERE)!r})\n"
                f"sys.argv.insert(1, {str(self.folder / name)!r})\n"
                f"runpy.run_path({str(HERE / f'standin_{name}.py')!r}, run_name='__main__')\n"
            )
            tool.chmod(tool.stat().st_mode | stat.S_IXUSR)

    def stop_services(self) -> None:
        """End everything that the stand-in's podman has started."""
        if not any((self.folder / "podman").glob("*")):
            return
        subprocess.run([self.bin / "podman", "standin-reset"], check=True, capture_output=True)

    def _serve_redfish(self) -> None:
        key, certificate = _certificate()
        (self.folder / "bmc.pem").write_bytes(certificate)
        (self.folder / "bmc.key").write_bytes(key)
        (self.folder / "bmc.password").write_text(PASSWORD + "\n")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "bmc.pem", self.folder / "bmc.key")
        handler = type("CardBmc", (Bmc,), {"card": self})
        self._server = BmcServer(("127.0.0.1", 0), handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.bmc = f"https://localhost:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def _serve_ssh(self) -> None:
        for name in ("host_key", "user_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name],
                check=True,
                capture_output=True,
            )
        self.port = _free_port()
        (self.folder / "authorized").write_text((self.folder / "user_key.pub").read_text())
        public = (self.folder / "host_key.pub").read_text().split()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {public[0]} {public[1]}\n")
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host_key\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nPidFile none\nUsePAM no\nStrictModes no\n"
            "PasswordAuthentication no\nPermitRootLogin yes\nMaxStartups 100\n"
            # SHLVL keeps bash from reading the user's own startup files, which may do anything.
            f"SetEnv PATH={self.bin}:/usr/bin:/bin SHLVL=1\n"
        )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd, as root, drops its privileges
        sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        assert sshd is not None, "sshd is needed: apt install openssh-server"
        with (self.folder / "sshd.log").open("wb") as log:
            self._sshd = subprocess.Popen(
                [sshd, "-D", "-e", "-f", self.folder / "sshd_config"], stdout=subprocess.DEVNULL, stderr=log
            )
        pause = threading.Event()
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self._sshd.poll() is None, (self.folder / "sshd.log").read_text()
            pause.wait(0.01)
        raise AssertionError("sshd does not listen")

    def configure(self, **changes: object) -> dict[str, str]:
        """Write the plugin's configuration; returns the environment that names it."""
        fields: dict[str, object] = {
            "root": str(self.root),
            "bmc": self.bmc,
            "bmc_password_file": str(self.folder / "bmc.password"),
            "bmc_ca": str(self.folder / "bmc.pem"),
            "ssh": f"{getpass.getuser()}@127.0.0.1",
            "ssh_port": self.port,
            "ssh_key": str(self.folder / "user_key"),
            "ssh_known_hosts": str(self.folder / "known_hosts"),
            "service_image": "localhost/busybox",
            "ports": ["p0", "p1", "pf0hpf"],
            **changes,
        }
        lines = [f"[card.{self.serial}]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in fields.items() if value is not None]
        path = self.folder / "bluefield.toml"
        path.write_text("\n".join(lines) + "\n")
        runtime = self.folder / "run"
        runtime.mkdir(exist_ok=True)
        return {"HAL_BLUEFIELD_CONFIG": str(path), "XDG_RUNTIME_DIR": str(runtime)}

    def close(self) -> None:
        """Stop everything."""
        self._ending.set()
        self._watcher.join(5)
        self.stop_services()
        self._server.shutdown()
        self._server.server_close()
        self._sshd.terminate()
        self._sshd.wait(10)
        os.close(self._console)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _certificate() -> tuple[bytes, bytes]:
    """Return a key and a certificate that it has signed itself, for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, certificate.public_bytes(serialization.Encoding.PEM)
