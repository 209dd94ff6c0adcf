"""What the engines of every DPU must compute, checked against other implementations and published vectors."""

from __future__ import annotations

import binascii
import hashlib
import zlib

import pytest

from hal.errors import AuthenticationFailed, InvalidArgument, Unsupported
from hal.interfaces.common import Handle
from hal.interfaces.deadline import Deadline
from hal.interfaces.dpu import Dpu
from hal.model.device import Device
from hal.testing.conformance import DriverConformance, assert_error_is_for_people, needs

MESSAGE = b"The quick brown fox jumps over the lazy dog" * 37

# AES-GCM test cases 4 and 16 of McGrew and Viega, "The Galois/Counter Mode of Operation (GCM)", submitted to NIST.
GCM_PLAIN = bytes.fromhex(
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
)
GCM_NONCE = bytes.fromhex("cafebabefacedbaddecaf888")
GCM_AAD = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
GCM_KEY = bytes.fromhex("feffe9928665731c6d6a8f9467308308")
GCM_SEALED = {
    GCM_KEY: bytes.fromhex(
        "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e"
        "21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e0915bc94fbc3221a5db94fae95ae7121a47"
    ),
    GCM_KEY * 2: bytes.fromhex(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b"
    ),
}


class DpuOffloadConformance(DriverConformance):
    """The checks for offloads; a part of :class:`~hal.testing.kinds.dpu.DpuConformance`."""

    @pytest.fixture
    def dpu(self, handle: Handle) -> Dpu:
        """The opened card."""
        assert isinstance(handle, Dpu), f"{type(handle).__name__} does not offer all of hal.interfaces.dpu.Dpu"
        return handle

    def _has(self, dpu: Dpu, name: str) -> None:
        names = {offload.name for offload in dpu.offloads()}
        assert name in names, f"the card does not offer {name}, only {sorted(names)}: declare what it lacks"

    def test_an_offload_that_is_not_offered_is_unsupported(self, dpu: Dpu, device: Device) -> None:
        with pytest.raises(Unsupported) as caught:
            dpu.offload("no-such-function", b"").wait(Deadline.after(10))
        assert_error_is_for_people(caught.value, device.id)

    def test_lacking_offloads_are_not_offered(self, dpu: Dpu) -> None:
        lacking = {lack.partition(":")[2] for lack in self.lacks if lack.startswith("offload:")}
        offered = {offload.name for offload in dpu.offloads()}
        untrue = {name for name in offered for lack in lacking if name.startswith(lack)}
        assert not untrue, f"declared as lacking, but offered: {sorted(untrue)}"

    def test_an_unknown_parameter_is_refused(self, dpu: Dpu) -> None:
        for offload in dpu.offloads():
            with pytest.raises(InvalidArgument):
                dpu.offload(offload.name, b"", no_such_parameter=1).wait(Deadline.after(10))

    @needs("offload:crc32")
    def test_crc32_is_that_of_ethernet(self, dpu: Dpu) -> None:
        self._has(dpu, "crc32")
        for data in (b"", b"123456789", MESSAGE, bytes(1 << 18)):
            assert dpu.offload("crc32", data).wait(Deadline.after(30)) == binascii.crc32(data).to_bytes(4, "big")
        assert dpu.offload("crc32", b"123456789").wait(Deadline.after(30)).hex() == "cbf43926"

    @needs("offload:sha")
    def test_digests_are_those_of_fips_180(self, dpu: Dpu) -> None:
        self._has(dpu, "sha256")
        names = {offload.name for offload in dpu.offloads()} & {"sha1", "sha256", "sha512"}
        for name in names:
            for data in (b"", b"abc", bytearray(MESSAGE), memoryview(bytes(1 << 18))):
                assert dpu.offload(name, data).wait(Deadline.after(30)) == hashlib.new(name, data).digest()

    @needs("offload:compress")
    def test_compress_gives_raw_deflate(self, dpu: Dpu) -> None:
        self._has(dpu, "compress")
        for data in (b"", MESSAGE, bytes(1 << 18)):
            packed = dpu.offload("compress", data).wait(Deadline.after(30))
            assert zlib.decompress(packed, wbits=-15) == data
        assert len(dpu.offload("compress", MESSAGE).wait(Deadline.after(30))) < len(MESSAGE)

    @needs("offload:decompress")
    def test_decompress_takes_raw_deflate_and_nothing_else(self, dpu: Dpu, device: Device) -> None:
        self._has(dpu, "decompress")
        packer = zlib.compressobj(wbits=-15)
        packed = packer.compress(MESSAGE) + packer.flush()
        assert dpu.offload("decompress", packed).wait(Deadline.after(30)) == MESSAGE
        for broken in (packed[:-4], zlib.compress(MESSAGE), b""):
            with pytest.raises(InvalidArgument) as caught:
                dpu.offload("decompress", broken).wait(Deadline.after(30))
            assert_error_is_for_people(caught.value, device.id)
        with pytest.raises(InvalidArgument):
            dpu.offload("decompress", packed, max_output_bytes=len(MESSAGE) - 1).wait(Deadline.after(30))

    @needs("offload:aes")
    def test_aes_gcm_agrees_with_the_published_vectors(self, dpu: Dpu) -> None:
        self._has(dpu, "aes-gcm-encrypt")
        for key, sealed in GCM_SEALED.items():
            done = dpu.offload("aes-gcm-encrypt", GCM_PLAIN, key=key, nonce=GCM_NONCE, aad=GCM_AAD)
            assert done.wait(Deadline.after(30)) == sealed
            done = dpu.offload("aes-gcm-decrypt", sealed, key=key, nonce=GCM_NONCE, aad=GCM_AAD)
            assert done.wait(Deadline.after(30)) == GCM_PLAIN

    @needs("offload:aes")
    def test_aes_gcm_gives_nothing_out_when_the_tag_does_not_fit(self, dpu: Dpu, device: Device) -> None:
        sealed = GCM_SEALED[GCM_KEY]
        altered = bytes([sealed[0] ^ 1]) + sealed[1:]
        for data, aad in ((altered, GCM_AAD), (sealed[:-1], GCM_AAD), (sealed, b"other")):
            with pytest.raises(AuthenticationFailed) as caught:
                dpu.offload("aes-gcm-decrypt", data, key=GCM_KEY, nonce=GCM_NONCE, aad=aad).wait(Deadline.after(30))
            assert_error_is_for_people(caught.value, device.id)

    @needs("offload:aes")
    def test_aes_gcm_wants_a_key_and_a_nonce_of_the_right_length(self, dpu: Dpu) -> None:
        with pytest.raises(InvalidArgument):
            dpu.offload("aes-gcm-encrypt", b"", key=GCM_KEY).wait(Deadline.after(30))
        for key, nonce in ((GCM_KEY[:-1], GCM_NONCE), (GCM_KEY, GCM_NONCE[:-1]), (GCM_KEY, "cafebabefaced")):
            with pytest.raises(InvalidArgument):
                dpu.offload("aes-gcm-encrypt", b"", key=key, nonce=nonce).wait(Deadline.after(30))
