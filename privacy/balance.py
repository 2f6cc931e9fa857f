"""The balance of one account: reserve, post and void, each attempt resolved exactly once.

An attempt is reserved before the order goes out, then posted (the data was opened, or nobody can
prove that it was not) or voided (it provably was not).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from privacy.entries import Statement
from privacy.filters import Filter
from protos.errors import BudgetRefused, Conflict, Malformed, NotFound

Resolution = Literal["post", "void"]


class Pending(NamedTuple):
    """A reservation that is not resolved: what a store keeps for each open attempt."""

    attempt_id: str
    units: int
    digest: str
    """`Statement.digest()` of the reservation."""
    accounted: bool = True
    """False for mechanism "none"."""


@dataclass(frozen=True, slots=True)
class Balance:
    """One account, folded from its entries: the only place that knows reserve, post and void.

    A store may keep it as `posted_units`, `guarantee`, one row for each of `pending`, and the
    kind in which each attempt ended; to apply one statement, `posted` and `voided` need to hold
    no attempt but that statement's own.

    Attributes:
        posted_units: cost of everything posted.
        pending: open reservations, in the order in which they were made.
        posted, voided: attempts that ended so.
        guarantee: False for ever once a release that is not accounted for was posted.
    """

    filter: Filter
    posted_units: int = 0
    pending: tuple[Pending, ...] = ()
    posted: frozenset[str] = frozenset()
    voided: frozenset[str] = frozenset()
    guarantee: bool = True

    @property
    def resolved(self) -> frozenset[str]:
        """Attempts that are over."""
        return self.posted | self.voided

    @property
    def pending_units(self) -> int:
        """Units that open reservations hold."""
        return sum(one.units for one in self.pending)

    @property
    def remaining_units(self) -> int:
        """Units that a new reservation may cost; never negative."""
        return max(0, self.filter.limit_units - self.posted_units - self.pending_units)

    def apply(self, statement: Statement, digest: str = "") -> "Balance":
        """Reserve, post or void as the statement says.

        Args:
            digest: `statement.digest()`, from one who has it already.

        Raises:
            Conflict: ATTEMPT_CONFLICT, a post or void that differs from its reservation; and
                whatever `reserve`, `post` and `void` raise.
        """
        if statement.kind == "reserve":
            return self.reserve(statement, digest)
        one = self._pending_of(statement.attempt_id)
        if one is not None and one.digest != (digest or statement.digest()):
            raise conflict(statement.attempt_id)
        return self._resolve(statement.attempt_id, statement.kind)

    def reserve(self, statement: Statement, digest: str = "") -> "Balance":
        """Set the cost of an attempt aside; the very same reservation again changes nothing.

        Whether a release without accounting is allowed at all is the caller's to check.

        Args:
            digest: as for `apply`.

        Raises:
            BudgetRefused: BUDGET_REFUSED, posted + pending + cost would pass the limit (to meet
                it is allowed); MECHANISM_NOT_COVERED, see `Filter.cost_units`.
            Conflict: ATTEMPT_CONFLICT, the attempt is reserved with another statement;
                ATTEMPT_RESOLVED, it is over: training again needs a new attempt.
        """
        if statement.kind != "reserve":
            raise Malformed("STATEMENT_INVALID", "Only a reserve statement reserves.")
        attempt_id, digest = statement.attempt_id, digest or statement.digest()
        if attempt_id in self.posted or attempt_id in self.voided:
            raise Conflict(
                "ATTEMPT_RESOLVED",
                f"Attempt {attempt_id} is over; training again is a new attempt with a new id.",
            )
        one = self._pending_of(attempt_id)
        if one is not None:
            if one.digest != digest:
                raise conflict(attempt_id)
            return self
        held_units = self.posted_units + self.pending_units
        units = cost_within(self.filter, held_units, statement)
        added = Pending(attempt_id, units, digest, statement.mechanism != "none")
        return self._with((*self.pending, added))

    def post(self, attempt_id: str) -> "Balance":
        """Charge a reservation whole; again changes nothing.

        Raises:
            Conflict: ATTEMPT_RESOLVED, it was voided.
            NotFound: ATTEMPT_UNKNOWN, it was never reserved here.
        """
        return self._resolve(attempt_id, "post")

    def void(self, attempt_id: str) -> "Balance":
        """Give a reservation back; again changes nothing.

        Only for an attempt that provably never opened the data: the caller must hold the node's
        signature over the void statement.

        Raises:
            Conflict: ATTEMPT_RESOLVED, it was posted.
            NotFound: ATTEMPT_UNKNOWN, it was never reserved here.
        """
        return self._resolve(attempt_id, "void")

    def _pending_of(self, attempt_id: str) -> Pending | None:
        for one in self.pending:
            if one.attempt_id == attempt_id:
                return one
        return None

    def _resolve(self, attempt_id: str, kind: Resolution) -> "Balance":
        before: Resolution | None = (
            "post" if attempt_id in self.posted else "void" if attempt_id in self.voided else None
        )
        if before == kind:
            return self
        if before is not None:
            raise Conflict(
                "ATTEMPT_RESOLVED", f"Attempt {attempt_id} already ended in {before}, not {kind}."
            )
        one = self._pending_of(attempt_id)
        if one is None:
            raise unknown(attempt_id)
        rest = tuple(other for other in self.pending if other is not one)
        if kind == "void":
            return self._with(rest, voided=self.voided | {attempt_id})
        return self._with(
            rest,
            posted_units=self.posted_units + one.units,
            posted=self.posted | {attempt_id},
            guarantee=self.guarantee and one.accounted,
        )

    def _with(
        self,
        pending: tuple[Pending, ...],
        *,
        posted_units: int | None = None,
        posted: frozenset[str] | None = None,
        voided: frozenset[str] | None = None,
        guarantee: bool | None = None,
    ) -> "Balance":
        # `dataclasses.replace` takes four times as long, for each entry of a ledger.
        return Balance(
            self.filter,
            self.posted_units if posted_units is None else posted_units,
            pending,
            self.posted if posted is None else posted,
            self.voided if voided is None else voided,
            self.guarantee if guarantee is None else guarantee,
        )


def cost_within(filter_: Filter, held_units: int, statement: Statement) -> int:
    """Units that a reservation costs where so many are posted or reserved already.

    Raises:
        BudgetRefused: as `Balance.reserve`.
    """
    units = filter_.cost_units(statement.release)
    left = filter_.limit_units - held_units
    if units > 0 and units > left:
        raise BudgetRefused(
            "BUDGET_REFUSED",
            f"Account {statement.account} has {max(0, left)} of {filter_.limit_units} "
            f"{filter_.kind} units left and attempt {statement.attempt_id} costs {units}: use more "
            "noise or fewer steps, or stop here.",
        )
    return units


def unknown(attempt_id: str) -> NotFound:
    """What ends was never reserved."""
    return NotFound("ATTEMPT_UNKNOWN", f"Attempt {attempt_id} was never reserved here.")


def conflict(attempt_id: str) -> Conflict:
    """What ends is not what was reserved."""
    return Conflict(
        "ATTEMPT_CONFLICT",
        f"Attempt {attempt_id} is reserved with another statement; a new one needs a new id.",
    )
