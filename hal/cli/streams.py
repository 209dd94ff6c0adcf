"""Standard output and error, also where a caller has closed them."""

from __future__ import annotations

import os
import sys


def open_closed_streams() -> None:
    """Send to nowhere what would be written to a closed standard output or error (``>&-``, some daemons).

    Python has None for such a stream, and the next file that is opened would get its number.
    """
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
