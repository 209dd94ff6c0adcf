"""Numbers in sentences: one device, two devices; bytes and rates as people write them."""

from __future__ import annotations

_BINARY = ("", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_DECIMAL = ("", "kB", "MB", "GB", "TB", "PB", "EB")
_RATES = ("", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s")


def counted(many: float, noun: str) -> str:
    """Return a number with its noun: ``1 device``, ``2 devices``, ``0.5 devices``."""
    return f"{many if isinstance(many, int) else format(many, 'g')} {noun}{'s' * (many != 1)}"


def are(many: float) -> str:
    """Return the verb that goes with a number: ``is`` with 1, ``are`` with every other."""
    return "is" if many == 1 else "are"


def sized(amount: int, name: str) -> str:
    """Return an amount of a capacity without its name: ``80 GiB`` of ``memory_bytes``, ``400 Gbit/s`` of ``rate_bps``.

    It is always exact: two amounts that differ never look the same.
    """
    if name.endswith("_bytes"):
        return min(_exact(amount, 1024, _BINARY), _exact(amount, 1000, _DECIMAL), key=len)
    return _exact(amount, 1000, _RATES) if name.endswith("_bps") else str(amount)


def measured(amount: int, name: str) -> str:
    """Return an amount of a capacity with its name: ``80 GiB of memory_bytes``, ``3 ports``."""
    text = sized(amount, name)
    return f"{text} {name}" if text.isdecimal() else f"{text} of {name}"


def _exact(amount: int, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while amount and amount % base == 0 and power + 1 < len(units):
        amount //= base
        power += 1
    return f"{amount} {units[power]}".strip()
