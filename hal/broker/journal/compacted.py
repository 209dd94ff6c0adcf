"""The error for history that is not kept any more; a client needs it and nothing else of the journal."""

from __future__ import annotations

from hal.errors import JournalError


class Compacted(JournalError):
    """The records asked for are not kept any more: take a snapshot, and go on from its revision.

    ``oldest`` is the oldest revision that can be continued from.
    """

    def __init__(self, after: int, oldest: int) -> None:
        super().__init__(
            f"the records after revision {after} are gone; the oldest to go on from is {oldest}",
            during="replay",
            hint="take a snapshot, and go on from its revision",
        )
        self.oldest = oldest
