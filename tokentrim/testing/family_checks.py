"""A strategy on a small model of every other family: one check per family that a registered adapter serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tokentrim.config.specs import StrategySpec
from tokentrim.errors import TokentrimError
from tokentrim.loading import known_model_types
from tokentrim.testing import answer_checks, deciding_checks
from tokentrim.testing.case import Case
from tokentrim.testing.outcome import Check, Skipped

_ON_EACH = (
    deciding_checks.runs,
    answer_checks.drop_is_mask,
    answer_checks.row_in_batch_is_row_alone,
    answer_checks.sets_are_nested,
    answer_checks.plan_is_met,
)


def family_checks(spec: StrategySpec, families: Sequence[str] | None) -> Iterator[Check]:
    """One check per model type."""
    for family in known_model_types() if families is None else families:
        yield Check(f"on_{family}", _on(spec, family))


def _on(spec: StrategySpec, family: str) -> Callable[[Case], None]:
    def run(_: Case) -> None:
        case = Case(spec, family)
        try:
            case.require_served()
        except TokentrimError as reason:
            raise Skipped(str(reason)) from reason
        for check in _ON_EACH:
            try:
                check(case)
            except Skipped:
                continue

    run.__doc__ = f"On a small model of {family}: runs, masks, batches, nested sets and the plan, as above."
    return run
