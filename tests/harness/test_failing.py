"""Failures under lmms-eval's command end the process; under anything else's call they pass as they are."""

import pytest

from tokentrim.errors import ConfigError, EngineError
from tokentrim.harness.failing import let_out

CALLER = """
def cli_evaluate(work):
    try:
        work()
    except Exception:
        return "forgotten"
"""


def fail(error, **options):
    def work():
        with let_out(**options):
            raise error

    return work


@pytest.fixture
def command():
    """A function that swallows exceptions, as lmms-eval's does, in a module of that package."""
    space = {"__package__": "lmms_eval"}
    exec(CALLER, space)
    return space["cli_evaluate"]


@pytest.mark.parametrize(
    ("error", "options", "code"),
    [
        (ConfigError("a must be b."), {"bad_input": True}, 2),
        (ConfigError("a must be b."), {}, 1),
        (EngineError("a must be b."), {"bad_input": True}, 1),
        (ValueError("broken"), {"bad_input": True}, 1),
    ],
)
def test_the_command_ends_with_a_code_of_its_own(command, capsys, error, options, code):
    with pytest.raises(SystemExit) as end:
        command(fail(error, **options))
    assert end.value.code == code
    assert end.value.__cause__ is error
    said = capsys.readouterr().err
    assert ("Traceback" in said) == isinstance(error, ValueError)
    assert str(error) in said


def test_a_python_caller_gets_the_exception_itself():
    with pytest.raises(ConfigError, match="a must be b"):
        fail(ConfigError("a must be b."))()


def test_another_function_of_that_name_is_not_the_command():
    space = {"__package__": "somebody_else"}
    exec(CALLER, space)
    assert space["cli_evaluate"](fail(ConfigError("x"))) == "forgotten"


def test_nothing_happens_where_nothing_fails(command):
    assert command(lambda: None) is None
