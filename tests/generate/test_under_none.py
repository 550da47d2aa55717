"""The script that runs transformers' own tests sees what passes under ``none``, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import warm
from tests.generate.under_none import main

_TESTS = """
from tests.models import prompt, tiny_llava

def test_greedy():
    model = tiny_llava(side=4)
    assert model.generate(**prompt(model, [3, "image", 5]), max_new_tokens=2).shape == (1, 26)

def test_that_fails_anyway():
    assert False

def test_that_looks_for_tokentrim():
    model = tiny_llava(side=4)
    model.generate(**prompt(model, [3, "image", 5]), max_new_tokens=1)
    assert "generate" not in vars(model)
"""


@pytest.mark.slow
def test_a_checkout_is_run_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.generate.under_none.subprocess.run", warm.run)
    (tmp_path / "test_own.py").write_text(_TESTS, encoding="utf-8")
    assert main([str(tmp_path), "test_own.py"]) == 1
    said = capsys.readouterr().out
    assert "only: test_own::test_that_looks" in said
    assert said.count("passes without tokentrim only") == 1
    assert "2 of 3 tests pass without tokentrim, 1 of them under none as well\n2 models were under none" in said


@pytest.mark.parametrize(
    ("under", "models", "code"),
    [
        ({"a": "passed", "b": "failed"}, 1, 0),
        ({"a": "passed", "b": "failed"}, 0, 1),
        ({"a": "failed", "b": "failed"}, 1, 1),
        ({"b": "failed"}, 1, 1),
    ],
)
def test_the_exit_code_tells_what_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, under: dict[str, str], models: int, code: int
) -> None:
    plain = {"a": "passed", "b": "failed"}
    monkeypatch.setattr(
        "tests.generate.under_none.outcomes", lambda *_, under_none: (under, models) if under_none else (plain, 0)
    )
    assert main([str(tmp_path), "test_own.py"]) == code


def test_nothing_to_run_is_bad_input() -> None:
    assert main(["nowhere"]) == 2
