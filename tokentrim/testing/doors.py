"""Three doors to the same checks: all at once, one by one, and as tests of pytest."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tokentrim.config.specs import Spec
from tokentrim.contracts.adapter import Adapter
from tokentrim.errors import ConfigError, complaint, suggestion
from tokentrim.plugins.loader import registry
from tokentrim.progress import Progress, Silent
from tokentrim.testing.adapter_checks import adapter_checks
from tokentrim.testing.answer_checks import ANSWER_CHECKS
from tokentrim.testing.case import Case
from tokentrim.testing.config_checks import CONFIG_CHECKS
from tokentrim.testing.deciding_checks import DECIDING_CHECKS
from tokentrim.testing.family_checks import family_checks
from tokentrim.testing.outcome import CheckOutcome, ContractError, Failed, Outcomes, Skipped
from tokentrim.testing.subjects import Example

if TYPE_CHECKING:
    import pytest
    from torch import nn

Expected: TypeAlias = "Mapping[str, str] | Callable[[Any], Mapping[str, str]]"

STRATEGY_CHECKS: Final = (*CONFIG_CHECKS, *DECIDING_CHECKS, *ANSWER_CHECKS)


@dataclass(frozen=True)
class BoundCheck:
    """A check of one strategy or adapter; call it.

    Attributes:
        name: of the check.
        label: of what is checked, short.
        whom: the same, for messages.
        run: raises Failed or Skipped.
    """

    name: str
    label: str
    whom: str
    run: Callable[[], None]

    def __call__(self) -> None:
        """Make the check.

        Raises:
            ContractError: when it fails; says what, of whom, and what to do.
            Skipped: when it does not apply.
        """
        __tracebackhide__ = True
        try:
            self.run()
        except Failed as failure:
            raise ContractError(f"{self.name}: {failure}") from failure.__cause__

    def outcome(self, expected: str | None = None) -> CheckOutcome:
        """What becomes of it; whatever it raises is a failure.

        Args:
            expected: why it is expected to fail, or None; if it then passes, that is a failure.
        """
        try:
            self()
        except Skipped as reason:
            return CheckOutcome(self.name, "skipped", str(reason))
        except ContractError as failure:
            return CheckOutcome(self.name, "failed" if expected is None else "expected", str(failure))
        except Exception as error:  # a stranger's code may raise anything
            text = f"{self.name}: {self.whom} must be checked without raising; got {type(error).__name__}: {error}."
            return CheckOutcome(self.name, "failed", text)
        if expected is not None:
            must = f"fail this check, as it was said to ({expected}), but it passed"
            text = f"{self.name}: {complaint(self.whom, must, hint='take it out of expected_failures')}"
            return CheckOutcome(self.name, "failed", text)
        return CheckOutcome(self.name, "passed")


def checks_of(subject: Any, *, families: Sequence[str] | None = None) -> Iterator[tuple[str, BoundCheck]]:
    """Every check of a strategy or an adapter: pairs (name, function of no argument).

    The function returns if all is well, and raises ContractError if not, Skipped where the check does not apply.

    Args:
        subject: a strategy in any form that ``trim`` accepts; or an adapter, its class, or an
            :class:`~tokentrim.testing.Example`.
        families: model types to run it on (see :func:`check_strategy` and :func:`check_adapter`).

    Raises:
        ConfigError, UnknownNameError: when a specification means no strategy.
    """
    is_class = isinstance(subject, type) and issubclass(subject, Adapter)
    given: Any = subject() if is_class else subject
    if isinstance(given, (Adapter, Example)):
        for name, check, case in adapter_checks(given, families):
            yield name, BoundCheck(name, case.label, case.whom, functools.partial(check.run, case))
        return
    trial = Case.of(given)
    for check in (*STRATEGY_CHECKS, *family_checks(trial.spec, families)):
        yield check.name, BoundCheck(check.name, trial.label, trial.whom, functools.partial(check.run, trial))


def check_strategy(
    strategy: Spec,
    *,
    families: Sequence[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    raises: bool = True,
    progress: Progress | None = None,
) -> Outcomes:
    """Check a strategy against its contract, on small models that are built in memory.

    Args:
        strategy: a registered name, a dict, YAML, or an object.
        families: model types to run it on, beside the plainest one, on which everything is checked; None = all that
            registered adapters serve. A family that refuses the strategy is skipped.
        expected_failures: check name -> reason. Such a check must fail; one that passes counts as a failure.
        raises: raise when a check fails; otherwise read ``.failed`` of what is returned.
        progress: told what happens.

    Raises:
        ContractError: when a check fails, with a paragraph for each.
        ConfigError, UnknownNameError: when the specification means no strategy.
    """
    return _all(list(checks_of(strategy, families=families)), expected_failures or {}, raises, progress)


def check_adapter(
    adapter: str | Adapter | type[Adapter],
    *,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    rows: Sequence[Mapping[str, Any]] = (),
    batch: Mapping[str, Any] | None = None,
    families: Sequence[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    raises: bool = True,
    progress: Progress | None = None,
) -> Outcomes:
    """Check an adapter against its contract.

    Args:
        adapter: a registered name, an adapter, or its class.
        model: a small model to check it on, or a function that makes one (see :class:`~tokentrim.testing.Example`);
            None = small copies of the families that the adapter gives an ``example_config`` of.
        rows: prompts for ``model``.
        batch: the same as one batch.
        families: model types to make copies of; None = all of the adapter's ``model_types``.
        expected_failures: check name -> reason; strict, as in :func:`check_strategy`.
        raises: raise when a check fails; otherwise read ``.failed`` of what is returned.
        progress: told what happens.

    Raises:
        ContractError: when a check fails, with a paragraph for each.
        UnknownNameError: when no adapter has that name.
    """
    given: Any = registry("adapter").get(adapter) if isinstance(adapter, str) else adapter
    given = given() if isinstance(given, type) else given
    if model is not None:
        given = Example(given, model, rows, batch)
    return _all(list(checks_of(given, families=families)), expected_failures or {}, raises, progress)


def _all(
    found: list[tuple[str, BoundCheck]], expected: Mapping[str, str], raises: bool, progress: Progress | None
) -> Outcomes:
    known_names(expected, [name for name, _ in found])
    told = Silent() if progress is None else progress
    told.start(len(found))
    made: list[CheckOutcome] = []
    for name, check in found:
        made.append(check.outcome(expected.get(name)))
        told.step(name)
    outcomes = Outcomes(found[0][1].whom if found else "nothing", tuple(made))
    if raises:
        outcomes.raise_failures()
    return outcomes


def known_names(expected: Mapping[str, str], names: Sequence[str]) -> None:
    """Refuse expected failures of checks that there are not.

    Raises:
        ConfigError: suggests the nearest name.
    """
    for name in expected:
        if name not in names:
            raise ConfigError(complaint("a key of expected_failures", "name a check", name, suggestion(name, names)))


def parametrize_with_checks(
    subjects: Sequence[Any],
    *,
    expected_failures: Expected | None = None,
    families: Sequence[str] | None = None,
) -> pytest.MarkDecorator:
    """Decorate a test of one argument, ``check``, to run once per check and subject.

    ```python
    @parametrize_with_checks(["my-pruner", MyPruner(keep_ratio=0.2)])
    def test_contract(check):
        check()
    ```

    Args:
        subjects: strategies in any form that ``trim`` accepts, adapters, and examples of adapters.
        expected_failures: check name -> reason, for all subjects, or a function of a subject that returns such a dict.
            These are marked xfail, strictly.
        families: see :func:`check_strategy` and :func:`check_adapter`.
    """
    import pytest  # tests alone need it

    if isinstance(subjects, (str, Mapping)):
        raise ConfigError(complaint("the subjects of parametrize_with_checks", "be a list", subjects,
                                    "put it in brackets"))  # fmt: skip
    params: list[Any] = []
    for subject in subjects:
        expected = expected_failures(subject) if callable(expected_failures) else expected_failures or {}
        found = list(checks_of(subject, families=families))
        known_names(expected, [name for name, _ in found])
        for name, check in found:
            reason = expected.get(name)
            marks = () if reason is None else pytest.mark.xfail(reason=reason, strict=True, raises=ContractError)
            params.append(pytest.param(functools.partial(skipping, check), id=f"{check.label}-{name}", marks=marks))
    return pytest.mark.parametrize("check", params)


def skipping(check: BoundCheck) -> None:
    """Make a check, skipping in pytest's own way."""
    import pytest

    __tracebackhide__ = True
    try:
        check()
    except Skipped as reason:
        pytest.skip(str(reason))
