"""A context leaves nothing behind: no hook, no setting, no changed output, whatever happened inside."""

from __future__ import annotations

import copy
import functools
import gc
import io
import weakref
from types import MethodType
from typing import Any

import pytest
import torch

from tests.engine.cases import SPECS, generate, trimmed
from tests.models import prompt, tiny_llava
from tokentrim.config.specs import strategy_from
from tokentrim.contracts.compose import compose
from tokentrim.contracts.sites import LayerSite, Need, StepSite
from tokentrim.contracts.strategy import SpatialScorer, TemporalScorer
from tokentrim.counting.schedule import Schedule
from tokentrim.errors import DataError, StrategyError, TokentrimError, UnsupportedError
from tokentrim.selftest.subject import state
from tokentrim.session import apply, restore, session_of, trim


class Broken(SpatialScorer):
    """Fails at its boundary."""

    name = "broken"
    needs = frozenset({Need.LAST_ROW, Need.VISION_ROWS})
    at: int = 2

    def needed(self) -> frozenset[Need]:
        return self.needs if self.at else frozenset({Need.VISION_ROWS})

    def schedule(self, shape: Any, n_visual: int) -> Schedule:
        return Schedule.of({self.at: n_visual // 2})

    def score(self, site: LayerSite) -> torch.Tensor:
        raise ZeroDivisionError("on purpose")


class BrokenLate(TemporalScorer):
    """Fails at decode step 2."""

    name = "broken-late"
    needs = frozenset({Need.LAST_ROW})

    def count(self, step: int, layer: int, n_prefill: int, shape: Any) -> int:
        return n_prefill - step

    def score(self, site: StepSite) -> torch.Tensor:
        if site.step == 2:
            raise ZeroDivisionError("on purpose")
        return site.last_row.mean(1)


@pytest.fixture(params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> Any:
    found = tiny_llava(side=4, attention=request.param)
    generate(found, prompt(found, [1, "image", 1]), 1)  # transformers installs hooks of its own in the first forward
    return found


@pytest.mark.parametrize("name", ["none", "st3", "fastv-query=all", "pool", "random-boundary=0", "composition"])
def test_nothing_remains_after_the_context(model: Any, name: str) -> None:
    inputs = prompt(model, [3, "image", 5], [2, "image", 9])
    before, expected = state(model), generate(model, inputs, 4)
    runs = []
    for _ in range(2):
        with trimmed(model, SPECS[name], inputs):
            assert state(model) != before
            runs.append(generate(model, inputs, 4)[1])
        assert state(model) == before
    found = generate(model, inputs, 4)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert torch.equal(runs[0], runs[1])


@pytest.mark.parametrize(
    ("strategy", "place"),
    [
        (Broken(at=0), "at boundary 0"),
        (Broken(at=2), "at boundary 2"),
        (BrokenLate(), "at step 2, layer 0"),
        (compose((Broken(at=5),), BrokenLate()), "at boundary 5"),
    ],
)
def test_nothing_remains_after_an_exception_inside(model: Any, strategy: Any, place: str) -> None:
    inputs = prompt(model, [3, "image", 5], [2, "image", 9])
    before, expected = state(model), generate(model, inputs, 4)
    with pytest.raises(StrategyError, match=place) as caught, trim(model, strategy):
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert state(model) == before
    found = generate(model, inputs, 4)
    assert torch.equal(found[1], expected[1])
    with pytest.raises(KeyError), trim(model, "st3"):
        raise KeyError("the caller's own")
    assert state(model) == before


def test_a_session_goes_on_after_an_exception_inside(model: Any) -> None:
    """The caller may catch what a prompt raised, and run the next one."""
    inputs = prompt(model, [3, "image", 5])
    with trim(model, SPECS["st3"]):
        expected = generate(model, inputs, 4)
    with trim(model, SPECS["st3"]):
        handle = model.lm_head.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generate(model, inputs, 4)
        handle.remove()
        handle = model.model.language_model.layers[3].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generate(model, inputs, 4)
        assert model.config.text_config._attn_implementation in ("sdpa", "eager")
        handle.remove()
        found = generate(model, inputs, 4)
    assert torch.equal(found[1], expected[1])


def test_the_attention_setting_is_switched_only_inside_a_forward(model: Any) -> None:
    inputs = prompt(model, [3, "image", 5])
    setting = model.config.text_config._attn_implementation
    with trim(model, SPECS["st3"]):
        generate(model, inputs, 4)
        assert model.config.text_config._attn_implementation == setting
        assert model.config.vision_config._attn_implementation == setting


def test_a_model_carries_one_strategy_at_a_time(model: Any) -> None:
    inputs = prompt(model, [3, "image", 5])
    before = state(model)
    with trim(model, SPECS["st3"]):
        with pytest.raises(UnsupportedError, match="one strategy at a time.*st3"), trim(model, "none"):
            pass
        with pytest.raises(UnsupportedError, match="one strategy at a time"):
            apply(model, "fastv")
        assert generate(model, inputs, 3)[0].shape == (1, 3)
        assert session_of(model).trace.steps == 2
    assert state(model) == before


def test_apply_and_restore(model: Any) -> None:
    inputs = prompt(model, [3, "image", 5])
    before, expected = state(model), generate(model, inputs, 4)
    with trim(model, SPECS["st3"]):
        pruned = generate(model, inputs, 4)
    assert apply(model, SPECS["st3"]) is model
    assert torch.equal(generate(model, inputs, 4)[1], pruned[1])
    assert session_of(model).report().prompts == 1
    assert restore(model) is model
    assert state(model) == before
    assert torch.equal(generate(model, inputs, 4)[1], expected[1])
    with pytest.raises(UnsupportedError, match="be trimmed"):
        restore(model)


@pytest.mark.parametrize("name", ["none", "st3"])
def test_wrappers_that_others_put_on_meanwhile_stay(model: Any, name: str) -> None:
    """As accelerate does when it prepares a model: it wraps ``forward``, bound or not, and keeps what it wrapped."""
    inputs, calls = prompt(model, [3, "image", 5]), list[str]()
    before, expected = state(model), generate(model, inputs, 4)

    def around(function: Any, kind: str) -> Any:
        @functools.wraps(getattr(function, "__func__", function))
        def bound(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append("bound")
            return function.__func__(self, *args, **kwargs)

        @functools.wraps(function)
        def unbound(*args: Any, **kwargs: Any) -> Any:
            calls.append("unbound")
            return function(*args, **kwargs)

        return MethodType(bound, function.__self__) if kind == "bound" else unbound

    for _ in range(2):  # the second context wraps the wrapper in its turn
        with trim(model, SPECS[name]):
            pruned = generate(model, inputs, 4)
            model.forward = around(model.forward, "bound")
            model.model.get_image_features = around(model.model.get_image_features, "unbound")
            assert torch.equal(generate(model, inputs, 4)[1], pruned[1])
        assert (name == "none") is torch.equal(pruned[1], expected[1])
        calls.clear()
        assert torch.equal(generate(model, inputs, 4)[1], expected[1])
        assert {"bound", "unbound"} == set(calls)
    twin = copy.deepcopy(model)  # what stands between the wrappers is the copy's own
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert not generate(twin, inputs, 1)[1].any()
    del model.forward, model.model.get_image_features
    assert state(model) == before


@pytest.mark.parametrize("name", ["none", "st3", "fastervlm"])
def test_a_model_that_was_applied_and_forgotten_is_freed(name: str) -> None:
    model = apply(tiny_llava(side=4, layers=3), SPECS[name])
    generate(model, prompt(model, [3, "image", 5]), 3)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_trimmed_model_is_neither_copied_nor_saved(model: Any) -> None:
    """The copy would carry hooks that know the other model."""
    with trim(model, SPECS["st3"]):
        with pytest.raises(UnsupportedError, match="neither copied nor saved"):
            copy.deepcopy(model)
        with pytest.raises(UnsupportedError, match="neither copied nor saved"):
            torch.save(model, io.BytesIO())
        torch.save(model.state_dict(), io.BytesIO())
    assert state(copy.deepcopy(model)) == state(model)


def test_a_strategy_that_cannot_be_served_touches_nothing(model: Any) -> None:
    before = state(model)
    for spec in ({"name": "fastv", "k": 6}, {"name": "pvtp", "start": 9}, {"name": "random", "boundary": 6}):
        with pytest.raises(StrategyError), trim(model, spec):
            pass
    assert state(model) == before


def test_recording_can_be_turned_off(model: Any) -> None:
    inputs = prompt(model, [3, "image", 5])
    with trim(model, SPECS["st3"], record=False) as session:
        generate(model, inputs, 4)
        with pytest.raises(DataError, match="recorded"):
            _ = session.trace
        assert session.report().decode_steps == 3
    with trim(model, "none") as session, pytest.raises(DataError, match="at least one prompt"):
        session.report()


def test_parameters_of_a_named_strategy_may_stand_beside_it():
    model = tiny_llava()
    with trim(model, "fastv", keep_ratio=0.2, k=1) as session:
        pass
    assert session.strategy == strategy_from({"name": "fastv", "keep_ratio": 0.2, "k": 1}).strategy
    apply(model, "random", keep_count=3)
    assert session_of(model).strategy == strategy_from({"name": "random", "keep_count": 3}).strategy
    restore(model)


@pytest.mark.parametrize(
    ("strategy", "parameters", "said"),
    [
        ("fastv", {"keep_ration": 0.2}, "Did you mean 'keep_ratio'? Known: k, keep_count, keep_ratio"),
        ("fastv", {"keep_ratio": 2}, "keep_ratio of strategy 'fastv' must"),
        ("fastw", {"keep_ratio": 0.2}, "Did you mean 'fastv'"),
        ({"name": "fastv"}, {"keep_ratio": 0.2}, "a strategy with keep_ratio beside it must be a registered name"),
        ("{name: fastv}", {"k": 1}, "be a registered name"),
    ],
)
def test_parameters_that_are_wrong_are_named(strategy, parameters, said):
    model = tiny_llava()
    with pytest.raises(TokentrimError) as caught:
        trim(model, strategy, **parameters)
    assert said in str(caught.value)
