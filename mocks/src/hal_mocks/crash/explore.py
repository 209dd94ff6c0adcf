"""Cut the power at every moment of a program, and look whether each image that may be left can be lived with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from hal.interfaces.pmem import PersistenceDomain
from hal_mocks.crash.memory import CrashMemory
from hal_mocks.crash.stores import LINE_BYTES, Store, describe, every_outcome, fewer, some_outcomes

Program = Callable[[CrashMemory], Any]
Check = Callable[[CrashMemory, Sequence[object]], Any]


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest case found: when the power failed, which stores were kept and lost, and what the check said."""

    moment: str
    kept: tuple[Store, ...]
    lost: tuple[Store, ...]
    promises: tuple[object, ...]
    complaint: str
    image: bytes
    smallest: bool

    def describe(self) -> str:
        """Return it for people: the schedule, line by line."""
        lines = [f"the power fails {self.moment}"]
        lines += [f"  kept  {line}" for line in describe(self.kept)]
        lines += [f"  lost  {line}" for line in describe(self.lost)]
        if self.promises:
            lines.append(f"  promised by then: {', '.join(map(repr, self.promises))}")
        lines.append(f"  then: {self.complaint}")
        if not self.smallest:
            lines.append("  (found by sampling, then made smaller: no store of it can be taken away)")
        return "\n".join(lines)


class CrashInconsistency(AssertionError):
    """A power failure may leave an image that the check refuses; ``failure`` is the smallest case found."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.describe())
        self.failure = failure


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at. ``complete``: every image at every moment; else some moments were sampled."""

    moments: int
    images: int
    complete: bool
    sampled_moments: int = 0
    failures: int = 0
    failure: Failure | None = None

    @property
    def ok(self) -> bool:
        """True if no image was refused."""
        return self.failure is None

    def describe(self) -> str:
        """Return it for people."""
        how = "all of them" if self.complete else f"{self.sampled_moments} moments had too many and were sampled"
        text = f"{self.images} images at {self.moments} moments ({how}), {self.failures} refused"
        return text if self.failure is None else f"{text}\n{self.failure.describe()}"

    def raise_for_failure(self) -> Report:
        """Raise :class:`CrashInconsistency` if an image was refused, else return the report."""
        if self.failure is not None:
            raise CrashInconsistency(self.failure)
        return self


def explore(
    program: Program,
    check: Check,
    *,
    size_bytes: int = 4096,
    image: bytes | None = None,
    domain: PersistenceDomain = PersistenceDomain.MEMORY_CONTROLLER,
    line_bytes: int = LINE_BYTES,
    limit: int = 4096,
    samples: int = 1000,
    seed: int = 0,
    crash_in_check: bool = False,
) -> Report:
    """Run a program and cut its power at every moment; see whether ``check`` accepts what is left.

    ``program(memory)`` does its work on a :class:`CrashMemory` of ``size_bytes`` zeros, or on ``image``; it tells what
    it has promised by ``memory.promise(fact)``. ``check(memory, promises)`` is given a memory with an image that may be
    left, as a program after a reboot finds it: it recovers, and raises anything (an ``AssertionError``, or what the
    structure itself raises) if it finds what must not be. With ``crash_in_check`` the power fails during the recovery
    as well, once, and the check runs again on what that leaves.

    Moments with at most ``limit`` images are looked at completely, those with more by ``samples`` of them, seeded. The
    first failure is the smallest of the first moment that has one: fewest stores kept.
    """
    examination = _Examination(check, domain, line_bytes, limit, samples, seed, crash_in_check)
    size = 0 if image is not None else size_bytes
    memory = CrashMemory(size, image=image, domain=domain, line_bytes=line_bytes, on_moment=examination.look)
    program(memory)
    memory.close()
    return examination.report()


class _Examination:
    def __init__(
        self,
        check: Check,
        domain: PersistenceDomain,
        line_bytes: int,
        limit: int,
        samples: int,
        seed: int,
        crash_in_check: bool,
    ) -> None:
        self._check = check
        self._domain = domain
        self._line_bytes = line_bytes
        self._limit = limit
        self._samples = samples
        self._rng = random.Random(seed)
        self._again = crash_in_check
        self._judged: dict[tuple[bytes, tuple[object, ...]], str | None] = {}
        self._moments = self._sampled = self._failures = 0
        self._failure: Failure | None = None

    def look(self, memory: CrashMemory, moment: str) -> None:
        """Judge every image that a power failure may leave now, or samples of them."""
        self._moments += 1
        lines = memory.lines
        complete = lines.outcomes() <= self._limit
        self._sampled += not complete
        chosen = every_outcome(lines) if complete else some_outcomes(lines, self._samples, self._rng)
        for kept in chosen:
            complaint, fresh = self._judge(memory, kept)
            if complaint is None:
                continue
            self._failures += fresh
            if self._failure is None:
                if not complete:
                    kept, complaint = self._shrink(memory, kept, complaint)
                self._failure = self._tell(memory, moment, kept, complaint, complete)

    def report(self) -> Report:
        """Return what was found."""
        return Report(
            moments=self._moments,
            images=len(self._judged),
            complete=self._sampled == 0,
            sampled_moments=self._sampled,
            failures=self._failures,
            failure=self._failure,
        )

    def _judge(self, memory: CrashMemory, kept: Sequence[Store]) -> tuple[str | None, bool]:
        image = memory.image(kept) if self._domain is not PersistenceDomain.NONE else bytes(memory.size_bytes)
        key = (image, memory.promises)
        if key in self._judged:
            return self._judged[key], False
        complaint = self._complaint(image, memory.promises)
        self._judged[key] = complaint
        return complaint, True

    def _complaint(self, image: bytes, promises: tuple[object, ...]) -> str | None:
        second: list[str] = []

        def look_again(recovering: CrashMemory, moment: str) -> None:
            if second:
                return
            lines = recovering.lines
            few = lines.outcomes() <= self._limit
            for kept in every_outcome(lines) if few else some_outcomes(lines, self._samples, self._rng):
                complaint = _run(self._check, self._memory(recovering.image(kept)), promises)
                if complaint is not None:
                    second.append(f"{complaint} (after a second power failure during recovery, {moment})")
                    return

        first = self._memory(image, look_again if self._again else None)
        complaint = _run(self._check, first, promises)
        return complaint if complaint is not None else (second[0] if second else None)

    def _memory(self, image: bytes, on_moment: Callable[[CrashMemory, str], None] | None = None) -> CrashMemory:
        return CrashMemory(image=image, domain=self._domain, line_bytes=self._line_bytes, on_moment=on_moment)

    def _shrink(self, memory: CrashMemory, kept: Sequence[Store], complaint: str) -> tuple[tuple[Store, ...], str]:
        smaller = True
        while smaller:
            smaller = False
            for fewer_kept in fewer(memory.lines, kept):
                found, _ = self._judge(memory, fewer_kept)
                if found is not None:
                    kept, complaint, smaller = fewer_kept, found, True
                    break
        return tuple(kept), complaint

    def _tell(self, memory: CrashMemory, moment: str, kept: Sequence[Store], complaint: str, smallest: bool) -> Failure:
        numbers = {store.number for store in kept}
        pending = [store for batches in memory.lines.pending.values() for batch in batches for store in batch]
        lost = sorted((store for store in pending if store.number not in numbers), key=lambda store: store.number)
        return Failure(
            moment=moment,
            kept=tuple(sorted(kept, key=lambda store: store.number)),
            lost=tuple(lost),
            promises=memory.promises,
            complaint=complaint,
            image=memory.image(kept),
            smallest=smallest,
        )


def _run(check: Check, memory: CrashMemory, promises: Sequence[object]) -> str | None:
    """Return why a check refuses an image: the words of whatever it raises, which is its way of saying so."""
    try:
        check(memory, promises)
    except Exception as error:
        words = str(error).partition("\n")[0]  # pytest explains an assertion below its first line
        return f"{type(error).__name__}: {words}".rstrip(": ")
    return None
