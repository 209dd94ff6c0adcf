"""``hal serve`` as a process: who is who by the kernel's and the certificates' word, kill -9, and its end."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path

import pytest

from hal.api.client import Client
from hal.api.wire import Unreachable
from hal.errors import ClaimRefused, HalError, LeaseEnded, LeaseNotFound
from hal.interfaces.deadline import Deadline
from hal.model.claim import Claim, Request
from hal.model.kind import Kind

NOBODY = 65534
BIN = Path(sys.executable).parent


class Serving:
    """A server's process, and where it serves."""

    def __init__(self, doors, environ, *words):
        command = [str(BIN / "hal"), "serve", "--json", *words]
        environment = {**doors.environ, **environ}
        self.log = doors.home / "serve.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(20)
            self.process.stdout.close()
            raise AssertionError(self.log.read_text())
        self.addresses = json.loads(line)["serving"]

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process.stdout.close()
        return code


@contextlib.contextmanager
def serving(doors, environ, *words):
    made = Serving(doors, environ, *words)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.end(signal.SIGKILL)


@pytest.fixture
def environ(mock):
    return mock("dgx-h100")


def test_devices_are_used_directly_through_a_ticket_of_the_server(doors, environ, monkeypatch):
    for name, value in {**doors.environ, **environ}.items():
        monkeypatch.setenv(name, value)
    with serving(doors, environ) as server, Client(server.addresses[0]) as client:
        held = client.claim("gpu", count=2, same="numa")
        with held.open(held.devices[0]) as handle:
            assert handle.telemetry()
            held.release()
            with pytest.raises(LeaseEnded):
                handle.telemetry()
        said = json.loads(doors.run("hal", "claim", "gpu:8", "--id", "all", "--json", environ=environ).stdout)
        assert len(said["lease"]["devices"]) == 8, "the command asks the server, which holds the journal"
        assert [lease.id for lease in client.list()] == ["all"]
        assert "has the journal open" not in doors.run("hal", "status", environ=environ).stderr
        assert server.end() == 0
    assert not Path(server.addresses[0]).exists()
    assert "all" in doors.run("hal", "list", environ=environ).stdout, "leases outlive their server"


def test_a_second_server_is_refused_and_check_serves_nothing(doors, environ, tmp_path):
    with serving(doors, environ):
        second = doors.run("hal", "serve", environ=environ)
        assert second.returncode == 1
        assert "already" in second.stderr
    (tmp_path / "serve.toml").write_text('[users]\nada = "physics/ada"\n[limits]\nclaims_per_second = 5\n')
    shown = doors.run("hal", "serve", "--check", "--config", str(tmp_path / "serve.toml"), environ=environ)
    assert json.loads(shown.stdout)["users"] == {"ada": "physics/ada"}
    unsafe = doors.run("hal", "serve", "--check", "--listen", "0.0.0.0:1", environ=environ)
    assert (unsafe.returncode, "nobody could be told" in unsafe.stderr) == (64, True)


SECOND_USER = """
import json, os, sys
from hal.api.client import Client
from hal.errors import HalError
from hal.interfaces.deadline import Deadline
import encodings.idna
os.setgroups([])
os.setgid({gid}); os.setuid({gid})
def outcome(verb):
    try:
        return repr(verb())
    except HalError as error:
        return type(error).__name__ + ": " + str(error)
with Client(sys.argv[1]) as client:
    print(json.dumps({{
        "who": client.whoami().tenant,
        "list": outcome(client.list), "queue": outcome(client.queue), "events": outcome(lambda: list(client.events())),
        "get": outcome(lambda: client.get("secret")), "release": outcome(lambda: client.release("secret")),
        "renew": outcome(lambda: client.renew("secret")), "resize": outcome(lambda: client.resize("secret", 1)),
        "wait": outcome(lambda: client.wait_for("secret", Deadline.after(0))),
        "never": outcome(lambda: client.release("never-was")),
        "same id": outcome(lambda: client.claim("gpu", id="secret", count=8)),
        "explain": outcome(lambda: client.explain("gpu", count=8)), "status": outcome(client.status),
        "refused": outcome(lambda: client.claim("gpu", count=8)), "cordon": outcome(lambda: client.cordon("gpu0")),
        "drain": outcome(lambda: client.drain("gpu0")), "audit": outcome(lambda: list(client.audit())),
        "mine": client.claim("gpu", id="mine", tenant="root").lease.tenant,
    }}))
"""


def test_a_second_user_of_the_machine_can_neither_see_nor_release_the_firsts_claim(doors, environ):
    if os.getuid() != 0:
        pytest.skip("to be two users takes root")
    folder = Path(tempfile.mkdtemp(prefix="hal-test-"))
    try:
        folder.chmod(0o755)
        path = folder / "hal.sock"
        with serving(doors, environ, "--socket", str(path)) as server, Client(path) as root:
            root.claim("gpu", count=4, id="secret", tenant="hidden-tenant")
            os.chown(path, 0, NOBODY)  # as --group does
            done = subprocess.run(
                [sys.executable, "-c", SECOND_USER.format(gid=NOBODY), str(path)],
                env={**os.environ, **environ},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            told = json.loads(done.stdout)
            assert told["who"] == told["mine"] == "users/nobody"
            assert told["list"] == told["queue"] == "()"
            assert "secret" not in told["events"]
            for verb in ("get", "release", "renew", "resize", "wait"):
                assert told[verb].startswith("LeaseNotFound"), (verb, told[verb])
            assert told["release"].replace("secret", "never-was") == told["never"]
            for verb in ("cordon", "drain", "audit"):
                assert told[verb].startswith("Forbidden"), (verb, told[verb])
            assert told["refused"].startswith("ClaimRefused")
            assert told["same id"].startswith(("ClaimError", "ClaimRefused"))
            everything = "".join(told[name] for name in told if name not in ("release", "never"))
            assert "hidden-tenant" not in everything
            assert "lease secret" not in everything
            assert [lease.id for lease in root.list("hidden-tenant")] == ["secret"], "and it is as it was"
            assert server.process.poll() is None
    finally:
        shutil.rmtree(folder)


def test_kill_9_at_any_time_loses_nothing_and_gives_nothing_twice(doors, environ, tmp_path):
    state = ["--state", str(tmp_path / "state")]
    acknowledged: dict[str, int] = {}
    stop = threading.Event()
    failures: list[BaseException] = []

    def claim_and_release(number, address):
        with Client(address, timeout_seconds=30) as client:
            turn = 0
            while not stop.is_set():
                name = f"c{number}-{turn}"
                turn += 1
                claim = Claim(id=name, requests=(Request(kind=Kind.GPU),), ttl_seconds=600.0)
                try:
                    held = _insist(lambda claim=claim: client.claim(claim))
                    acknowledged[name] = held.lease.fence
                    if turn % 2:
                        _insist(lambda name=name: client.release(name))
                        del acknowledged[name]
                except ClaimRefused:
                    stop.wait(0.02)
                except BaseException as error:
                    failures.append(error)
                    return

    server = Serving(doors, environ, *state)
    threads = [threading.Thread(target=claim_and_release, args=(i, server.addresses[0])) for i in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        stop.wait(0.6)
        server.end(signal.SIGKILL)
        server = Serving(doors, environ, *state)
    stop.wait(0.3)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not failures, failures
    with Client(server.addresses[0]) as client:
        leases = client.list()
        assert {lease.id: lease.fence for lease in leases} == acknowledged
        devices = [device.id for lease in leases for device in lease.devices]
        assert len(devices) == len(set(devices))
        assert client.verify_audit().ok
    assert server.end() == 0


def _insist(verb, seconds=30.0):
    """Ask again while nobody answers, as a caller does: the same id makes it safe."""
    deadline = Deadline.after(seconds)
    while True:
        try:
            return verb()
        except Unreachable:
            if deadline.expired:
                raise


def _certificate(name, folder, issuer=None, uri=None):
    """Make a key and a certificate, signed by ``issuer`` (its own, if none is given); return the paths."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    if uri is not None:
        names.append(x509.UniformResourceIdentifier(uri))
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[2].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .sign(key if issuer is None else issuer[3], hashes.SHA256())
    )
    paths = folder / f"{name}.crt", folder / f"{name}.key"
    paths[0].write_bytes(built.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return str(paths[0]), str(paths[1]), built, key


def test_a_client_certificate_says_who_it_is_and_without_one_there_is_no_talk(doors, environ, tmp_path):
    ca = _certificate("ca", tmp_path)
    mine = _certificate("server", tmp_path, ca)
    ada = _certificate("ada", tmp_path, ca, "hal:tenant:physics/lattice")
    ops = _certificate("ops", tmp_path, ca, "hal:operator:operations")
    strange = _certificate("strange", tmp_path, _certificate("other-ca", tmp_path))
    words = ["--listen", "127.0.0.1:0", "--tls-certificate", mine[0], "--tls-key", mine[1], "--tls-client-ca", ca[0]]
    with serving(doors, environ, *words) as server:
        address = server.addresses[1]
        assert address.startswith("https://127.0.0.1:")
        with Client(address, ca=ca[0], certificate=ada[:2]) as client:
            assert client.claim("gpu", id="a").lease.tenant == "physics/lattice"
            assert client.whoami().by == "certificate"
        with Client(address, ca=ca[0], certificate=ops[:2]) as client:
            assert client.whoami().operator
            assert client.release("a").why_ended
        for certificate in (None, strange[:2]):
            with Client(address, ca=ca[0], certificate=certificate) as client, pytest.raises(Unreachable):
                client.list()
        old = ssl.create_default_context(cafile=ca[0])
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as end,
            pytest.raises(ssl.SSLError),
        ):
            old.wrap_socket(end, server_hostname="127.0.0.1")


def test_a_token_made_on_the_command_line_is_good_at_the_door(doors, environ):
    key = doors.home / "key"
    assert doors.run("hal", "token", "key", "--key", str(key), environ=environ).returncode == 0
    made = doors.run(
        "hal", "token", "make", "--key", str(key), "--tenant", "physics/ada", "--for", "10m", environ=environ
    )
    with serving(doors, environ, "--listen", "127.0.0.1:0", "--token-key", str(key)) as server:
        remote = {**environ, "HAL_SERVER": server.addresses[1], "HAL_TOKEN": made.stdout.strip()}
        done = doors.run("hal", "claim", "gpu", "--id", "a", "--json", environ=remote)
        assert json.loads(done.stdout)["lease"]["tenant"] == "physics/ada"
        refused = doors.run("hal", "cordon", "gpu0", environ=remote)
        assert (refused.returncode, "operator" in refused.stderr) == (1, True)
        with Client(server.addresses[0]) as root:
            with pytest.raises(LeaseNotFound):
                root.release("b")
            assert [lease.id for lease in root.list()] == ["a"]
    unreachable = doors.run("hal", "list", environ=remote)
    assert unreachable.returncode == 75, unreachable.stderr


def test_a_client_that_dies_leaves_its_claim_to_its_time_to_live(doors, environ, tmp_path):
    program = textwrap.dedent(
        """
        import os, signal, sys
        from hal.api.client import Client
        held = Client(sys.argv[1]).claim("gpu", id="orphan", ttl_seconds=0.5)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    with serving(doors, environ) as server, Client(server.addresses[0]) as client:
        subprocess.run([sys.executable, "-c", program, server.addresses[0]], env={**os.environ, **environ}, check=False)
        kinds = []
        for event in client.watch(0, Deadline.after(20)):
            if event.subject == "orphan":
                kinds.append(event.type.value)
                if event.type == "released":
                    break
        assert kinds[:2] == ["granted", "prepared"]
        assert "suspected" in kinds
        assert client.status().devices["gpu"]["free"] == 8
        with pytest.raises(HalError):
            client.renew("orphan")
