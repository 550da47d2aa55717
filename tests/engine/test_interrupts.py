"""Ctrl-C at any line of entering, of leaving or of a forward: the model is put back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.engine.cases import SPECS
from tests.models import prompt, tiny_llava
from tokentrim.engine.session import session_on
from tokentrim.selftest.subject import state
from tokentrim.session import trim


class _Interrupt:
    """Runs a function and raises KeyboardInterrupt at the n-th line that runs in it, in whatever file."""

    def __init__(self, line: int) -> None:
        self.line, self.seen, self.raised = line, 0, False

    def _trace(self, frame: Any, event: str, arg: Any) -> Any:
        if event == "line":
            if self.seen == self.line:
                sys.settrace(None)
                self.raised = True
                raise KeyboardInterrupt
            self.seen += 1
        return self._trace

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)


# By hand, at every line: under none, fastv, fastervlm and st3 no line of entering leaves anything, and of leaving the
# first alone, before which nothing has begun. Steps and prefills were tried at every 13th line.
@pytest.mark.parametrize(("what", "stride"), [("enter", 83), ("leave", 29), ("step", 331), ("prefill", 997)])
def test_nothing_remains_after_an_interrupt(what: str, stride: int) -> None:
    model = tiny_llava(side=4, layers=3)
    inputs = prompt(model, [3, "image", 5])
    with torch.no_grad():
        model(**inputs)  # transformers installs hooks of its own in the first forward
        before, line = state(model), stride // 2
        while True:
            session, interrupt = trim(model, SPECS["st3"]), _Interrupt(line)
            if what == "enter":
                interrupt(session.__enter__)
                assert (state(model) == before) is interrupt.raised
            else:
                session.__enter__()
            if what == "step":
                cache = model(**inputs, use_cache=True).past_key_values
                interrupt(model, input_ids=torch.tensor([[5]]), past_key_values=cache)
            elif what == "prefill":
                interrupt(model, **inputs)
            if what == "leave":
                interrupt(session.__exit__, None, None, None)
            elif what != "enter" or not interrupt.raised:
                session.__exit__(None, None, None)
            assert state(model) == before
            assert session_on(session.layout.language_model) is None
            if not interrupt.raised:
                break
            line += stride
