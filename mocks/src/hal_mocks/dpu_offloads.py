"""The engines of a mock DPU: they compute on the host, with the standard library and OpenSSL.

The profile says which card has which engine; without its word the generation decides (DOCA Compress: BlueField-3
decompresses deflate but no longer compresses). The buffer limits are the mock's own.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping

from hal.errors import AuthenticationFailed, InvalidArgument, Unsupported
from hal.interfaces.dpu import Buffer, DpuMode, Offload
from hal.interfaces.operation import Operation
from hal_mocks.graph import Dpu

INLINE_BYTES = 64 << 10
"""Up to here computing is quicker than handing the work to a thread."""

_MIB = 1 << 20
_AES = ("key", "nonce")
_ENGINES = {
    offload.name: offload
    for offload in (
        Offload(name="crc32", max_bytes=128 * _MIB, optional=("initial",)),
        Offload(name="sha1", max_bytes=128 * _MIB),
        Offload(name="sha256", max_bytes=128 * _MIB),
        Offload(name="sha512", max_bytes=128 * _MIB),
        Offload(name="compress", max_bytes=128 * _MIB, optional=("level",)),
        Offload(name="decompress", max_bytes=128 * _MIB, optional=("max_output_bytes",)),
        Offload(name="aes-gcm-encrypt", max_bytes=2 * _MIB, required=_AES, optional=("aad",)),
        Offload(name="aes-gcm-decrypt", max_bytes=2 * _MIB, required=_AES, optional=("aad",)),
    )
}
# A profile may name a family; an engine that the mock cannot compute (regex) is not offered.
_FAMILIES = {
    "crc": ("crc32",),
    "sha": ("sha1", "sha256", "sha512"),
    "deflate": ("compress", "decompress"),
    "aes": ("aes-gcm-encrypt", "aes-gcm-decrypt"),
    "aes-gcm": ("aes-gcm-encrypt", "aes-gcm-decrypt"),
}
_BY_GENERATION = {
    "2": ("crc", "sha", "deflate", "aes"),
    "3": ("crc", "sha", "decompress", "aes"),
}
_GCM_TAG_BYTES = 16


def offloads_of(dpu: Dpu, mode: DpuMode) -> tuple[Offload, ...]:
    """Return what a card computes in a mode: nothing in NIC mode, for its cores and engines are inactive."""
    if mode is DpuMode.NIC:
        return ()
    listed: Iterable[str] = dpu.offloads or _BY_GENERATION.get(dpu.generation[-1:], ("crc",))
    names = dict.fromkeys(name for entry in listed for name in _FAMILIES.get(entry, (entry,)))
    return tuple(_ENGINES[name] for name in names if name in _ENGINES)


def start_offload(
    device: str, engines: Mapping[str, Offload], name: str, buffer: Buffer, parameters: Mapping[str, object]
) -> Operation[bytes]:
    """Check everything that can be checked, then compute: at once if it is little, else in a thread."""
    engine = engines.get(name)
    step = f"offload {name}"
    if engine is None:
        raise Unsupported(
            "the card has no such engine" if engines else "no engine works in NIC mode",
            device=device,
            during=step,
            hint="choose one of offloads()" if engines else "set_mode(dpu) and a power cycle",
        )
    view = memoryview(buffer)
    if not view.contiguous:
        raise InvalidArgument("the buffer is not contiguous", device=device, during=step, hint="copy it into bytes")
    if engine.max_bytes is not None and view.nbytes > engine.max_bytes:
        raise InvalidArgument(
            f"{view.nbytes} bytes are more than the engine's {engine.max_bytes}",
            device=device,
            during=step,
            hint="split the buffer",
        )
    missing = [key for key in engine.required if key not in parameters]
    unknown = [key for key in parameters if key not in engine.required + engine.optional]
    if missing or unknown:
        takes = ", ".join(engine.required + engine.optional) or "none"
        raise InvalidArgument(
            f"missing parameter {missing[0]!r}" if missing else f"unknown parameter {unknown[0]!r}",
            device=device,
            during=step,
            hint=f"its parameters: {takes}",
        )
    compute = _COMPUTE[name](device, step, parameters)
    data = view.cast("B") if view.nbytes else memoryview(b"")

    if view.nbytes > INLINE_BYTES:
        return Operation.spawn(device, step, lambda _: compute(data))
    operation: Operation[bytes] = Operation(device, step)
    try:
        operation.succeed(compute(data))
    except (InvalidArgument, AuthenticationFailed) as error:
        operation.fail(error)
    return operation


_Compute = Callable[[memoryview], bytes]
_Parameters = Mapping[str, object]


def _integer(device: str, step: str, parameters: _Parameters, key: str, default: int, least: int, most: int) -> int:
    value = parameters.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidArgument(f"{key}={value!r}", device=device, during=step, hint=f"{key} is {least} to {most}")
    return value


def _octets(device: str, step: str, parameters: _Parameters, key: str, lengths: tuple[int, ...] | None) -> bytes:
    value = parameters.get(key, b"")
    if not isinstance(value, bytes | bytearray | memoryview) or (lengths and len(value) not in lengths):
        wanted = " or ".join(str(length) for length in lengths or ()) or "any number of"
        raise InvalidArgument(f"{key} is wrong", device=device, during=step, hint=f"{key} is {wanted} bytes")
    return bytes(value)


def _crc32(device: str, step: str, parameters: _Parameters) -> _Compute:
    initial = _integer(device, step, parameters, "initial", 0, 0, 0xFFFFFFFF)
    return lambda data: zlib.crc32(data, initial).to_bytes(4, "big")


def _digest(name: str) -> Callable[[str, str, _Parameters], _Compute]:
    return lambda device, step, parameters: lambda data: hashlib.new(name, data).digest()


def _compress(device: str, step: str, parameters: _Parameters) -> _Compute:
    level = _integer(device, step, parameters, "level", 6, 1, 9)

    def compute(data: memoryview) -> bytes:
        engine = zlib.compressobj(level, zlib.DEFLATED, -15)
        return engine.compress(data) + engine.flush()

    return compute


def _decompress(device: str, step: str, parameters: _Parameters) -> _Compute:
    most = _integer(device, step, parameters, "max_output_bytes", 128 * _MIB, 0, 1 << 40)

    def compute(data: memoryview) -> bytes:
        def refuse(why: str, hint: str) -> InvalidArgument:
            return InvalidArgument(why, device=device, during=step, hint=hint)

        engine = zlib.decompressobj(-15)
        try:
            # One byte more than allowed tells a stream that is too long from one that just fits.
            plain = engine.decompress(data, most + 1)
        except zlib.error as error:
            raise refuse(f"no raw deflate stream: {error}", "strip the zlib or gzip header") from None
        if len(plain) > most:
            raise refuse(f"the output is longer than {most} bytes", "raise max_output_bytes")
        if not engine.eof:
            raise refuse("the deflate stream ends too early", "give the whole stream")
        if engine.unused_data:
            raise refuse(f"{len(engine.unused_data)} bytes follow the deflate stream", "give the stream alone")
        return plain

    return compute


def _aes_gcm(*, encrypt: bool) -> Callable[[str, str, _Parameters], _Compute]:
    def build(device: str, step: str, parameters: _Parameters) -> _Compute:
        key = _octets(device, step, parameters, "key", (16, 32))
        nonce = _octets(device, step, parameters, "nonce", (12,))
        aad = _octets(device, step, parameters, "aad", None)

        def compute(data: memoryview) -> bytes:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            cipher = AESGCM(key)
            if encrypt:
                return cipher.encrypt(nonce, data, aad)
            if len(data) < _GCM_TAG_BYTES:
                raise InvalidArgument(
                    f"{len(data)} bytes hold no tag", device=device, during=step, hint="give ciphertext and tag"
                )
            try:
                return cipher.decrypt(nonce, data, aad)
            except InvalidTag:
                raise AuthenticationFailed(
                    "the tag does not fit",
                    device=device,
                    during=step,
                    hint="the data was altered, or key, nonce or aad are others",
                ) from None

        return compute

    return build


_COMPUTE: dict[str, Callable[[str, str, _Parameters], _Compute]] = {
    "crc32": _crc32,
    "sha1": _digest("sha1"),
    "sha256": _digest("sha256"),
    "sha512": _digest("sha512"),
    "compress": _compress,
    "decompress": _decompress,
    "aes-gcm-encrypt": _aes_gcm(encrypt=True),
    "aes-gcm-decrypt": _aes_gcm(encrypt=False),
}
