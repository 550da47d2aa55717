"""A pytest plugin: the contract suite from the command line, and a small model as a fixture.

    pytest --tokentrim-strategy my-pruner --tokentrim-strategy '{name: my-pruner, keep_ratio: 0.2}'
    pytest --tokentrim-adapter my-adapter

The checks run after the tests that pytest collects. Importing this module imports neither torch nor transformers:
pytest imports it in every project of an environment that has tokentrim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tokentrim.selftest.subject import Subject
    from tokentrim.testing.doors import BoundCheck


def pytest_addoption(parser: pytest.Parser) -> None:
    """The two options."""
    group = parser.getgroup("tokentrim", "the contract suite of tokentrim")
    group.addoption(
        "--tokentrim-strategy",
        action="append",
        default=[],
        metavar="SPEC",
        help="check this strategy too: a registered name, inline YAML or a YAML file (repeatable)",
    )
    group.addoption(
        "--tokentrim-adapter",
        action="append",
        default=[],
        metavar="NAME",
        help="check this registered adapter too (repeatable)",
    )


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add one item per check that the options ask for."""
    strategies: list[str] = config.getoption("--tokentrim-strategy") or []
    adapters: list[str] = config.getoption("--tokentrim-adapter") or []
    if not strategies and not adapters:
        return
    from tokentrim.errors import TokentrimError
    from tokentrim.plugins.loader import registry
    from tokentrim.testing.doors import checks_of

    try:
        subjects: list[Any] = [*strategies, *(registry("adapter").get(name) for name in adapters)]
        found = [(check.label, check) for subject in subjects for _, check in checks_of(subject)]
    except TokentrimError as error:
        raise pytest.UsageError(str(error)) from error
    items += [CheckItem.made(session, f"tokentrim[{label}-{check.name}]", check) for label, check in found]


class CheckItem(pytest.Item):
    """One check as a test."""

    check: BoundCheck

    @classmethod
    def made(cls, session: pytest.Session, name: str, check: BoundCheck) -> CheckItem:
        """The item of a check."""
        item: CheckItem = cls.from_parent(session, name=name)
        item.check = check
        return item

    def runtest(self) -> None:
        """Make the check, skipping in pytest's own way."""
        from tokentrim.testing.doors import skipping

        skipping(self.check)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The complaint alone; what else is raised, with its traceback."""
        from tokentrim.testing.outcome import ContractError

        if isinstance(excinfo.value, ContractError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, None, str]:
        """Where it stands in reports."""
        return "tokentrim", None, self.name


@pytest.fixture(scope="session")
def tokentrim_small() -> Subject:
    """A small random model with prompts, ``tokentrim.testing.small_model()``: ``.model``, ``.prompt(0, 1)``."""
    from tokentrim.testing.subjects import small_model

    return small_model()
