"""The dirty-shutdown counts that somebody has taken note of, kept where they outlive a reboot.

A module counts for life how often the power went before it was ready. What matters is an increase, and that it is not
forgotten: it stands until a repair (a scrub that passed) has taken note.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

_LOG = logging.getLogger(__name__)


def baseline_file(environ: Mapping[str, str]) -> Path:
    """Return where the counts are: below ``$XDG_STATE_HOME/hal``, ``/var/lib/hal`` for root."""
    state = environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(state):
        return Path(state, "hal", "pmem-dirty-shutdowns.json")
    if os.getuid() == 0:
        return Path("/var/lib/hal/pmem-dirty-shutdowns.json")
    return Path(environ.get("HOME") or Path.home(), ".local", "state", "hal", "pmem-dirty-shutdowns.json")


class Baseline:
    """Counts by module id. Where they cannot be written, an increase is only seen by this process."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._counts: dict[str, int] | None = None

    def note(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return the count from which each module's increase is reckoned: its first one seen."""
        known = self._load()
        fresh = {name: count for name, count in counts.items() if name not in known or count < known[name]}
        if fresh:  # a smaller count is another module under the same number, or one that was reset by its maker
            self.accept(fresh)
        return {name: self._load()[name] for name in counts}

    def accept(self, counts: Mapping[str, int]) -> None:
        """Take note of the counts as they are."""
        known = self._load()
        known.update(counts)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._file.with_suffix(f".{os.getpid()}.new")
            fresh.write_bytes(msgspec.json.encode(known))
            fresh.replace(self._file)
        except OSError as error:
            _LOG.debug("dirty-shutdown counts cannot be kept in %s: %s", self._file, error)

    def _load(self) -> dict[str, int]:
        if self._counts is None:
            try:
                self._counts = msgspec.json.decode(self._file.read_bytes(), type=dict[str, int])
            except (OSError, msgspec.MsgspecError):
                self._counts = {}
        return self._counts
