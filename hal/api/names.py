"""The words of a claim against those that devices here know: a slip of the pen is no refusal."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from hal.broker.ledger import Ledger
from hal.errors import ClaimError, HalError
from hal.model.claim import Claim, Locality
from hal.model.selector import COMMON, USUAL, compile_selector

_PLACES = frozenset(place.value for place in Locality)


class Names:
    """Knows which attributes and capacities occur in the inventory."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._seen = -1
        self._known: frozenset[str] = frozenset()

    def mistakes(self, claims: Sequence[Claim]) -> Iterator[tuple[int, str]]:
        """Yield the numbers of the claims that :meth:`check` does not pass, and why."""
        for number, claim in enumerate(claims):
            try:
                self.check(claim)
            except HalError as error:
                yield number, error.message

    def check(self, claim: Claim) -> None:
        """Raise ``SelectorError`` or ``ClaimError`` for a word that no device here has, with the nearest one.

        What is written in CEL is compiled here, before the broker's own turn: a long text takes the parser a while.
        """
        choices = [choice for request in claim.requests for choice in (request, *request.or_else)]
        for text in (text for choice in choices for text in choice.cel):
            from hal.model.cel import compile_cel

            compile_cel(text)
        texts = {choice.where for choice in choices if choice.where}
        words = {constraint.same or constraint.distinct for constraint in claim.constraints} - _PLACES
        if not texts and not words:
            return
        known = self.known()
        for text in texts:
            compile_selector(text, known)
        for word in sorted(words):
            if word and "/" not in word and word not in known and word not in USUAL and word not in COMMON:
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
