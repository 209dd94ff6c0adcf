"""A machine with ACME cards as a folder: what the tests and the tutorial look at instead of hardware."""

from __future__ import annotations

from pathlib import Path


def write_tree(folder: Path, cards: int = 1, size_bytes: int = 4 << 20) -> None:
    """Write ``sys/class/acme`` with its cards, and their memory in ``dev``, below a folder that stands for ``/``."""
    for number in range(cards):
        memory = folder / "dev" / f"acme{number}"
        memory.parent.mkdir(parents=True, exist_ok=True)
        with memory.open("wb") as file:
            file.truncate(size_bytes)
        card = folder / "sys" / "class" / "acme" / f"acme{number}"
        card.mkdir(parents=True, exist_ok=True)
        for name, value in {
            "serial": f"AC{1000 + number}",
            "model": "Anvil 4M",
            "size_bytes": size_bytes,
            "memory": f"/dev/acme{number}",
            "persistence_domain": "memory_controller",
            "numa_node": number % 2,
            "temperature_celsius": 41,
            "life_used_percent": 3,
            "health": "ok",
        }.items():
            (card / name).write_text(f"{value}\n")
