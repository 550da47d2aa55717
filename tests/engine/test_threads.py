"""One model in several threads: each is answered as if alone, waits, or is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch

from tests.engine.cases import SPECS, generate
from tests.models import prompt, tiny_llava
from tokentrim.errors import UnsupportedError
from tokentrim.selftest.subject import state
from tokentrim.session import trim

_model = lru_cache(maxsize=1)(tiny_llava)


@pytest.fixture
def model() -> Any:
    found = _model(side=4)
    generate(found, prompt(found, [1, "image", 1]), 1)
    return found


def _threads(*work: Callable[[], Any]) -> list[Any]:
    """What each function returns or raises, each in a thread of its own."""
    found: list[Any] = [None] * len(work)

    def run(index: int) -> None:
        try:
            found[index] = work[index]()
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.mark.parametrize("name", ["random-boundary=0", "fastervlm", "sparsevlm", "st3"])
def test_pictures_are_encoded_at_the_same_time(model: Any, name: str) -> None:
    """One is encoded while the other is; then they take turns, so that no two forwards overlap."""
    inputs = [prompt(model, [3, "image", 5], seed=seed) for seed in (0, 5)]
    begun, encoded, done = threading.Event(), threading.Event(), threading.Event()

    def first() -> Any:
        try:
            return generate(model, inputs[0], 4)[1]
        finally:
            done.set()

    def second() -> Any:
        begun.wait(30)
        return generate(model, inputs[1], 4)[1]

    with trim(model, SPECS[name]):
        wanted = [generate(model, one, 4)[1] for one in inputs]
        names: list[str] = []

        def entering(*_: Any) -> None:
            names.append(threading.current_thread().name)
            if len(names) == 1:
                begun.set()
                encoded.wait(30)

        def leaving(*_: Any) -> None:
            if threading.current_thread().name == names[-1] != names[0]:
                encoded.set()
                done.wait(30)

        handles = [
            model.model.vision_tower.register_forward_pre_hook(entering),
            model.model.multi_modal_projector.register_forward_hook(leaving),
        ]
        found = _threads(first, second)
        for handle in handles:
            handle.remove()
    for one, alone in zip(found, wanted, strict=True):
        assert torch.equal(one, alone)


def test_a_second_forward_is_refused_and_leaving_waits_for_the_first(model: Any) -> None:
    inputs, before = prompt(model, [3, "image", 5]), state(model)
    begun, go_on, left = threading.Event(), threading.Event(), threading.Event()
    session = trim(model, SPECS["st3"]).__enter__()
    with torch.no_grad():
        wanted = model(**inputs).logits

    def stop(*_: Any) -> None:
        begun.set()
        go_on.wait(30)

    def forward() -> Any:
        with torch.no_grad():
            return model(**inputs).logits

    def leave() -> bool:
        begun.wait(30)
        handle.remove()
        with pytest.raises(UnsupportedError, match="one forward at a time"):
            forward()
        threading.Timer(0.05, go_on.set).start()
        session.__exit__(None, None, None)
        left.set()
        return go_on.is_set()

    handle = session.layout.layers[3].mlp.register_forward_pre_hook(stop)
    found, waited = _threads(forward, leave)
    assert torch.equal(found, wanted)
    assert waited is True
    assert state(model) == before


def test_two_threads_enter_at_once(model: Any) -> None:
    before = state(model)
    for _ in range(5):
        gate = threading.Barrier(2, timeout=30)

        def enter(gate: threading.Barrier = gate) -> Any:
            session = trim(model, SPECS["fastv-query=last"])
            gate.wait()
            return session.__enter__()

        found = _threads(enter, enter)
        refused = [one for one in found if isinstance(one, UnsupportedError)]
        assert len(refused) == 1
        assert "one strategy at a time" in str(refused[0])
        next(one for one in found if one not in refused).__exit__(None, None, None)
        assert state(model) == before
