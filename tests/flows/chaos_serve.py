"""``hal`` in a process whose clocks a test turns: ``python -m tests.flows.chaos_serve FOLDER WORDS...``.

Steady time runs ahead by the seconds in FOLDER/time, as in the other stories; the wall clock is off by those in
FOLDER/wall, whatever they are from one moment to the next.
"""

from __future__ import annotations

import struct
import sys
import time
from pathlib import Path

from tests.flows.chaos_hooks import install_clock

WALL = "wall"


def set_wall_clock(folder: Path, seconds: float) -> None:
    """Put the wall clock of the folder's processes off by so much."""
    fresh = folder / "wall.new"
    fresh.write_bytes(struct.pack("<d", seconds))
    fresh.replace(folder / WALL)


def main() -> int:
    folder = Path(sys.argv[1])
    real, path = time.time, folder / WALL
    if path.exists():
        time.time = lambda: real() + struct.unpack("<d", path.read_bytes())[0]
    from hal.cli.main import main as hal

    install_clock(folder)
    return hal(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
