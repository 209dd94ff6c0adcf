"""What verbs needs besides a NIC: keys and addresses as bytes, patience, GIDs, and where pyverbs is found."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.errors import FlushedError, RemoteAccessError, TransferError
from hal.interfaces.rnic import ALL_ACCESS, Access, CompletionCode, Gid
from hal_rdma.buffers import address_of, as_bytes
from hal_rdma.verbs.binding import DEBIAN, why_no_binding
from hal_rdma.verbs.endpoint import best_gid, gid_bytes, gid_text
from hal_rdma.verbs.timing import ACK_RETRIES, ACK_TIMEOUT, FOREVER, PULSE_SECONDS, RNR_TIMERS_MS, plan_rnr
from hal_rdma.verbs.wire import Address, RemoteKey, pack_address, pack_key, unpack_address, unpack_key
from hal_rdma.verbs.work import error_of

WORD = st.integers(0, (1 << 64) - 1)
HALF = st.integers(0, (1 << 32) - 1)
SESSION = st.binary(min_size=8, max_size=8)
KEYS = st.builds(
    lambda start, length, access, key, session: RemoteKey(start, start + length, Access(access), key, session),
    WORD,
    WORD,
    st.integers(0, 15),
    HALF,
    SESSION,
)
ADDRESSES = st.builds(
    Address,
    link_layer=st.sampled_from([1, 2]),
    mtu=st.integers(1, 5),
    lid=st.integers(0, 0xFFFF),
    queue=HALF,
    sequence=HALF,
    reads=st.integers(0, 255),
    gid=st.binary(min_size=16, max_size=16),
    pulse=WORD,
    pulse_key=HALF,
    patience_us=HALF,
    session=SESSION,
)
KEY = RemoteKey(4096, 8192, ALL_ACCESS, 0x1234, b"session1")


@settings(deadline=None)
@given(KEYS)
def test_a_key_comes_back_as_it_was(key: RemoteKey) -> None:
    assert unpack_key(pack_key(key)) == key


@settings(deadline=None)
@given(ADDRESSES)
def test_an_address_comes_back_as_it_was(address: Address) -> None:
    assert unpack_address(pack_address(address)) == address


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_bytes_that_nobody_packed_are_neither(data: bytes) -> None:
    assert unpack_key(data) is None
    assert unpack_address(data) is None


@settings(deadline=None)
@given(st.integers(0, 287), st.data())
def test_a_key_with_one_bit_changed_or_cut_is_none(bit: int, data: st.DataObject) -> None:
    packed = bytearray(pack_key(KEY))
    packed[bit // 8 % len(packed)] ^= 1 << bit % 8
    assert unpack_key(bytes(packed)) is None
    assert unpack_key(bytes(pack_key(KEY)[: data.draw(st.integers(0, 35))])) is None


def test_a_key_is_no_address() -> None:
    assert unpack_address(pack_key(KEY)) is None


@settings(deadline=None)
@given(st.floats(0, 3600))
def test_patience_is_never_shorter_than_asked_for(seconds: float) -> None:
    plan = plan_rnr(seconds)
    if plan.by_clock:
        assert plan.retries == FOREVER
        assert RNR_TIMERS_MS[plan.timer] < 5, "a receive posted meanwhile is found soon"
    else:
        assert 1 <= plan.retries < FOREVER
        assert plan.retries * RNR_TIMERS_MS[plan.timer] >= seconds * 1000 - 1e-9


def test_short_patience_is_the_nics_own_and_not_much_longer() -> None:
    assert plan_rnr(0.01) == (15, 6, False)  # six times 1.92 ms
    assert plan_rnr(0.0).timer == 1
    assert plan_rnr(0.5).by_clock


def test_a_dead_peer_is_noticed_within_a_second() -> None:
    assert PULSE_SECONDS + (ACK_RETRIES + 1) * 4.096e-6 * 2**ACK_TIMEOUT < 0.9


def gid(index: int, text: str, kind: str = "RoCE v2") -> Gid:
    return Gid(index=index, gid=text, type=kind, netdev="eth0")


LOCAL = "fe80:0000:0000:0000:a288:c2ff:feab:5f40"
MAPPED = "0000:0000:0000:0000:0000:ffff:0a09:0001"
GLOBAL = "2001:0db8:0000:0000:0000:0000:0000:0001"


@pytest.mark.parametrize(
    ("gids", "index"),
    [
        ((gid(0, LOCAL, "IB/RoCE v1"), gid(1, LOCAL), gid(2, MAPPED, "IB/RoCE v1"), gid(3, MAPPED)), 3),
        ((gid(0, LOCAL), gid(1, GLOBAL)), 1),
        ((gid(0, LOCAL, "IB/RoCE v1"), gid(1, LOCAL)), 1),
        ((gid(0, LOCAL, "IB/RoCE v1"),), 0),
    ],
)
def test_the_gid_that_can_be_routed_over_ipv4_is_chosen_first(gids: tuple[Gid, ...], index: int) -> None:
    chosen = best_gid(gids)
    assert chosen is not None
    assert chosen.index == index


def test_no_gid_is_none() -> None:
    assert best_gid(()) is None


@settings(deadline=None)
@given(st.binary(min_size=16, max_size=16))
def test_a_gids_text_and_bytes_say_the_same(data: bytes) -> None:
    assert gid_bytes(gid_text(data)) == data


@pytest.mark.parametrize(
    ("status", "kind"), [(10, RemoteAccessError), (5, FlushedError), (12, TransferError), (77, TransferError)]
)
def test_a_completions_status_is_a_typed_error_with_its_code(status: int, kind: type[TransferError]) -> None:
    error = error_of(status, "rnic-x", "put")
    assert type(error) is kind
    assert (error.code, error.device, error.during) == (status, "rnic-x", "put")
    assert error.hint
    assert CompletionCode.REMOTE_ACCESS == 10


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=64), st.booleans())
def test_a_buffers_address_is_where_its_bytes_are(data: bytes, writable: bool) -> None:
    view = as_bytes(bytearray(data) if writable else data, "rnic-x", "put")
    assert ctypes.string_at(address_of(view), view.nbytes) == data


def test_a_missing_pyverbs_names_its_package(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; sys.path = [p for p in sys.path if 'dist-packages' not in p];"
        "from hal_rdma.verbs.binding import why_no_binding;"
        f"print(why_no_binding(pathlib.Path({str(tmp_path / 'none')!r})))"
    )
    assert "apt install python3-pyverbs" in run(script)


def test_a_pyverbs_of_another_python_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").touch()
    (tmp_path / "device.cpython-38-x86_64-linux-gnu.so").touch()
    script = (
        "import sys, pathlib; sys.path = [p for p in sys.path if 'dist-packages' not in p];"
        "from hal_rdma.verbs.binding import why_no_binding;"
        f"print(why_no_binding(pathlib.Path({str(tmp_path)!r})))"
    )
    assert "not built for Python" in run(script)


@pytest.mark.skipif(bool(why_no_binding()), reason=why_no_binding() or "pyverbs can be loaded")
def test_debians_pyverbs_is_loaded_from_a_virtual_environment_and_says_so() -> None:
    script = (
        "from hal_rdma.verbs.binding import load_verbs; verbs = load_verbs();"
        "print(verbs.origin, verbs.enums.IBV_WC_REM_ACCESS_ERR, verbs is load_verbs())"
    )
    origin, status, again = run(script).split()
    assert origin in ("import", str(DEBIAN))
    assert (status, again) == ("10", "True")


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
