"""What becomes of a check: it passes, fails, does not apply, or fails as was expected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from tokentrim.errors import TokentrimError, complaint
from tokentrim.selftest.verdict import Failed, Skipped as Skipped

Status = Literal["passed", "failed", "skipped", "expected"]

STRATEGIES: Final = "docs/write-a-strategy.md"
ADAPTERS: Final = "docs/write-an-adapter.md"

NOTHING: Final = object()


class ContractError(TokentrimError):
    """A strategy or an adapter that breaks its contract."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True)
class Check:
    """One check of a contract.

    Attributes:
        name: of the check; stable, so that expected failures can name it.
        run: raises :class:`Failed` or :class:`Skipped`.
    """

    name: str
    run: Callable[[Any], None]

    @property
    def summary(self) -> str:
        """The first sentence of the check's docstring."""
        return " ".join((self.run.__doc__ or "").strip().split("\n\n")[0].split())


def unlike(wanted: Sequence[int], got: Sequence[int], most: int = 6) -> tuple[str, str]:
    """Two sets of tokens in the words of an error: (what was wanted, what is there instead), some of each."""
    missing, strange = sorted(set(wanted) - set(got)), sorted(set(got) - set(wanted))

    def some(tokens: Sequence[int]) -> str:
        return ", ".join(map(str, tokens[:most])) + (", ..." if len(tokens) > most else "")

    lost = f"; {some(missing)} among them" if missing else ""
    return f"{len(wanted)} tokens{lost}", f"{len(got)} tokens" + (f"; {some(strange)} instead" if strange else "")


def checks(*functions: Callable[[Any], None]) -> tuple[Check, ...]:
    """Checks named as their functions are."""
    return tuple(Check(function.__name__, function) for function in functions)


@dataclass(frozen=True)
class CheckOutcome:
    """What became of one check.

    Attributes:
        name: of the check.
        status: passed, failed, skipped (it does not apply) or expected (it failed, and the caller said so).
        text: why, unless it passed.
    """

    name: str
    status: Status
    text: str = ""


@dataclass(frozen=True)
class Outcomes(Sequence[CheckOutcome]):
    """What became of all checks of one strategy or adapter, in order."""

    whom: str
    items: tuple[CheckOutcome, ...]

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def failed(self) -> tuple[CheckOutcome, ...]:
        """The checks that failed unexpectedly, or passed although a failure was expected."""
        return tuple(outcome for outcome in self.items if outcome.status == "failed")

    def raise_failures(self) -> None:
        """Raise one error with a paragraph per failed check.

        Raises:
            ContractError: when any failed.
        """
        if self.failed:
            head = f"{self.whom} fails {len(self.failed)} of {len(self.items)} checks."
            raise ContractError("\n\n".join([head, *(outcome.text for outcome in self.failed)]))

    def __str__(self) -> str:
        """One line per check."""
        width = max((len(outcome.name) for outcome in self.items), default=0)
        lines = [f"{o.name:{width}}  {o.status:8}  {o.text}".rstrip() for o in self.items]
        return "\n".join([self.whom, *lines])


def require(holds: object, what: str, must: str, got: object = NOTHING, hint: str = "", *, see: str) -> None:
    """Raise :class:`Failed` in the house grammar unless ``holds``.

    Args:
        holds: what must be true.
        what: what is wrong, and of whom.
        must: the constraint, without the word "must".
        got: the offending value.
        hint: what to do about it.
        see: page and section of the documentation that state the rule.
    """
    if not holds:
        said = complaint(what, must, hint=hint) if got is NOTHING else complaint(what, must, got, hint)
        raise Failed(f"{said} See {see}.")
