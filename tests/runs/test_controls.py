"""A control that a model cannot serve is left out, with the reason; a method that was asked for fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tokentrim.config.specs import strategy_from
from tokentrim.errors import UnsupportedError
from tokentrim.runs import answer
from tokentrim.runs.work import Unreachable


@pytest.fixture
def refusing(monkeypatch):
    def refuse(*given: Any) -> None:
        raise UnsupportedError("no grid")

    monkeypatch.setattr(answer, "_answer", refuse)


def test_a_control_that_the_model_cannot_serve_is_left_out(refusing):
    given: Any = SimpleNamespace(places=(0,))
    with pytest.raises(Unreachable, match="no grid"):
        answer._run_batch(given, given, given, strategy_from("pool").strategy, given)


def test_a_method_that_was_asked_for_fails(refusing, monkeypatch):
    failed: list[str] = []
    monkeypatch.setattr(answer, "_fail", lambda cell, answers, batch, cause: failed.append(str(cause)))
    given: Any = SimpleNamespace(places=(0,))
    answer._run_batch(given, given, given, strategy_from("visionzip").strategy, given)
    assert failed == ["no grid"]
