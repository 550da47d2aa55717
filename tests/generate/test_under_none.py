"""The script that runs transformers' own tests sees what passes under ``none``, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.generate.under_none import main

_TESTS = """
from tests.models import prompt, tiny_llava

def test_greedy():
    model = tiny_llava(side=4)
    assert model.generate(**prompt(model, [3, "image", 5]), max_new_tokens=2).shape == (1, 26)

def test_that_fails_anyway():
    assert False
"""
_LOST = """
def test_that_looks_for_tokentrim():
    model = tiny_llava(side=4)
    model.generate(**prompt(model, [3, "image", 5]), max_new_tokens=1)
    assert "generate" not in vars(model)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "code", "says"), [("", 0, "1 of 2 tests pass"), (_LOST, 1, "only: test_own::test_that_looks")]
)
def test_a_checkout_is_run_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str, code: int, says: str
) -> None:
    (tmp_path / "test_own.py").write_text(_TESTS + more, encoding="utf-8")
    assert main([str(tmp_path), "test_own.py"]) == code
    assert says in capsys.readouterr().out


def test_nothing_to_run_is_bad_input() -> None:
    assert main(["nowhere"]) == 2
