"""The checks of adapters pass on ours, and each of them fails on one that is broken where it looks.

Those that the self-test brings along have their broken adapters in tests/selftest/test_selftest.py.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.families import FAMILIES
from tokentrim.contracts.adapter import Adapter, Encoding, Layout, Places
from tokentrim.errors import UnknownNameError
from tokentrim.plugins.loader import registry
from tokentrim.selftest.checks import CHECKS
from tokentrim.selftest.subject import Subject
from tokentrim.testing import Example, check_adapter, checks_of, parametrize_with_checks, small_model
from tokentrim.testing.adapter_checks import ADAPTER_CHECKS, AdapterCase

Llava: Any = registry("adapter").get("llava")


def subject_for(adapter: Adapter) -> Subject:
    """The small LLaVA, served by another adapter."""
    sound = small_model("llava")
    return replace(sound, adapter=adapter, layout=adapter.locate(sound.model))


def fails(name: str, adapter: Adapter) -> str:
    case = AdapterCase(adapter, "llava", lambda: subject_for(adapter))
    check = next(check for check in ADAPTER_CHECKS if check.name == name)
    with pytest.raises(Exception, match=" must ") as caught:
        check.run(case)
    assert type(caught.value).__name__ == "Failed"
    return " ".join(str(caught.value).split())


class Nameless(Llava):
    name: ClassVar[str] = ""


class Claiming(Llava):
    model_types: ClassVar[tuple[str, ...]] = ("llava", "mine")


class Forgiving(Llava):
    def locate(self, model: Any) -> Layout:
        return super().locate(model if hasattr(model, "model") else small_model("llava").model)


class Miscounting(Llava):
    def shape(self, config: Any, **more: Any) -> Any:
        found = super().shape(config, **more)
        return replace(found, n_layers=found.n_layers - 1)


class TwoMinds(Llava):
    def shape(self, config: Any, **more: Any) -> Any:
        found = super().shape(config, **more)
        return replace(found, intermediate_size=7) if "name" not in more and not more else found


class Overlooking(Llava):
    """Take the last placeholder for text, but only where the engine asks."""

    def modalities(self, layout: Layout, arguments: Any) -> Tensor:
        found = super().modalities(layout, arguments)
        if "labels" in arguments or "cache_position" in arguments or "past_key_values" in arguments:
            found[:, int(found[0].nonzero()[-1])] = 0
        return found


class Stacked(Llava):
    def places(self, layout: Layout, encoding: Encoding, item: int) -> Places:
        found = super().places(layout, encoding, item)
        return replace(found, row=torch.zeros_like(found.row))


class Outside(Llava):
    def places(self, layout: Layout, encoding: Encoding, item: int) -> Places:
        found = super().places(layout, encoding, item)
        return replace(found, row=found.row + 1)


class Confused(Llava):
    """Read the placeholders of a batch wrong."""

    def modalities(self, layout: Layout, arguments: Any) -> Tensor:
        found = super().modalities(layout, arguments)
        third = found.shape[0] // 3  # the second row; with two beams, its first
        if third:
            found[third, found[third].nonzero()[:3, 0]] = 0
        return found


class Scaled(Llava):
    def arrange(self, layout: Layout, encoding: Encoding, rows: Any) -> Tensor:
        return super().arrange(layout, encoding, rows) * len(encoding.lengths)


class Negative(Llava):
    def arrange(self, layout: Layout, encoding: Encoding, rows: Any) -> Tensor:
        return -super().arrange(layout, encoding, rows)


class Untidy(Llava):
    def modalities(self, layout: Layout, arguments: Any) -> Tensor:
        layout.entry.__dict__["left_behind"] = len(layout.entry.__dict__)
        return super().modalities(layout, arguments)


@pytest.fixture(autouse=True)
def tidy_model():
    yield
    small_model("llava").layout.entry.__dict__.pop("left_behind", None)


BROKEN = (
    ("names_are_registered", Nameless, "name .* be set"),
    ("names_are_registered", Claiming, "give the class of the adapter"),
    ("drift_is_an_error", Forgiving, "raise AdapterError; got 'a Layout'"),
    ("shape_is_the_models", Miscounting, "n_layers .* be the model's 6; got 5"),
    ("shape_is_the_models", TwoMinds, "be the shape that locate"),
    ("plan_is_met", Overlooking, "be the plan's"),
    ("places_are_a_grid", Stacked, "6 places for 36 tokens"),
    ("places_are_a_grid", Outside, "lie inside their plane"),
    ("ragged_rows_are_rows_alone", Confused, "keep what it keeps alone"),
    ("right_padding_is_no_padding", Confused, "have the logits of the row alone"),
    ("beams_in_batch_are_beams_alone", Confused, "be that of the row alone"),
    ("tower_attention_is_readable", Negative, "be finite and not negative"),
    ("tower_attention_is_readable", Scaled, "be those of the row alone"),
    ("nothing_remains_after_an_exception", Untidy, "be as before"),
)


@pytest.mark.parametrize(("name", "broken", "text"), BROKEN, ids=[f"{n}-{b.__name__}" for n, b, _ in BROKEN])
def test_the_check_sees_what_is_broken(name: str, broken: Any, text: str) -> None:
    said = fails(name, broken())
    assert re.search(text, said), said
    assert "See docs/" in said


def test_answers_follow_the_prompt_sees_another_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("llava").model
    real = model.generate
    monkeypatch.setitem(model.__dict__, "generate", lambda **more: real(**more)[:, 1:])
    assert "another prompt and 4" in fails("answers_follow_the_prompt", Llava())


def test_every_check_is_seen_to_fail() -> None:
    own = {check.name for check in ADAPTER_CHECKS} - {name.replace(" ", "_") for name, _, _ in CHECKS}
    assert own == {name for name, _, _ in BROKEN} | {"answers_follow_the_prompt"}


def test_the_self_tests_failures_come_with_their_reason() -> None:
    class Transposed(Llava):
        def places(self, layout: Layout, encoding: Encoding, item: int) -> Places:
            found = super().places(layout, encoding, item)
            return replace(found, row=found.col, col=found.row)

    assert "pass the self-test's 'grid'; got 'a change at row" in fails("grid", Transposed())


# ---------------------------------------------------------------------- an author's own model


def given() -> Example:
    sound = small_model("qwen2_5_vl")
    return Example(sound.adapter, sound.model, [sound.prompt(0), sound.prompt(1)])


@parametrize_with_checks([given()])
def test_a_model_and_prompts_of_an_authors_own(check: Any) -> None:
    check()


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_our_adapters_pass(family: str) -> None:
    name = small_model(family).adapter.name
    outcomes = check_adapter(name, families=[family])
    assert {outcome.status for outcome in outcomes} <= {"passed", "skipped"}


@pytest.mark.parametrize("name", ["llava-next", "llava-next-video", "llava-onevision"])
def test_our_adapters_pass_on_pictures_of_many_tiles(name: str) -> None:
    """On models of few patches: copies that are made of a configuration alone have thousands of visual tokens."""
    family = FAMILIES[name]
    model = family.model()
    rows = [family.prompt(model, [text, "image:30x20", 5], seed=text) for text in (3, 9)]
    outcomes = check_adapter(name, model=model, rows=rows)
    assert {outcome.status for outcome in outcomes} <= {"passed", "skipped"}
    assert [outcome.name for outcome in outcomes if outcome.status == "skipped"] == ["grid"]


def test_names_carry_the_family_where_there_are_several() -> None:
    names = [name for name, _ in checks_of(registry("adapter").get("qwen-vl"))]
    assert "drop_is_mask[qwen3_vl]" in names
    with pytest.raises(UnknownNameError, match="Did you mean 'llava'"):
        check_adapter("lava")
