"""The words of a claim against those that devices here know: a slip of the pen is no refusal."""

from __future__ import annotations

import difflib

from hal.broker.ledger import Ledger
from hal.errors import ClaimError
from hal.model.claim import Claim, Locality
from hal.model.selector import COMMON, USUAL, compile_selector


class Names:
    """Knows which attributes and capacities occur in the inventory."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._seen = -1
        self._known: frozenset[str] = frozenset()

    def check(self, claim: Claim) -> None:
        """Raise ``SelectorError`` or ``ClaimError`` for a word that no device here has, with the nearest one."""
        texts = {choice.where for request in claim.requests for choice in (request, *request.or_else) if choice.where}
        words = {constraint.same or constraint.distinct for constraint in claim.constraints} - set(Locality)
        if not texts and not words:
            return
        known = self.known()
        for text in texts:
            compile_selector(text, known)
        for word in sorted(words):
            if word and word not in known and word not in USUAL and word not in COMMON:
                close = difflib.get_close_matches(word, (*Locality, *known), n=1, cutoff=0.5)
                raise ClaimError(
                    f"{word!r} is no place, and nothing here has such an attribute",
                    device=claim.id,
                    during="claim",
                    hint=f"did you mean {close[0]}?" if close else "one of " + ", ".join(Locality),
                )

    def known(self) -> frozenset[str]:
        """Return all names, collected again when devices have changed."""
        with self._ledger.lock:
            state = self._ledger.state
            if self._seen != state.sights:
                names = (name for d in state.devices.values() for name in (*d.attributes, *d.capacity))
                self._known = frozenset(names)
                self._seen = state.sights
            return self._known
