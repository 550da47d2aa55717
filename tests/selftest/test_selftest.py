"""Every check of the self-test passes on a sound adapter, and fails on one that is broken where the check looks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, Gemma3TextConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig

from tokentrim import selftest
from tokentrim.config.specs import strategy_from
from tokentrim.contracts.adapter import Adapter, Encoding, Layout, Places
from tokentrim.contracts.sites import Need
from tokentrim.errors import UnsupportedError
from tokentrim.loading import known_model_types
from tokentrim.plugins.loader import registry
from tokentrim.selftest import model_class_of, running, self_test
from tokentrim.selftest.checks import CHECKS, _against_reference
from tokentrim.selftest.running import subject_of
from tokentrim.selftest.shrink import small_config
from tokentrim.selftest.subject import Subject
from tokentrim.selftest.verdict import Failed
from tokentrim.session import trim

Sound: Any = registry("adapter").get("llava")
NAMES = [name for name, _, _ in CHECKS]


@lru_cache(maxsize=2)
def subject(text: str = "llama") -> Subject:
    config = LlavaConfig() if text == "llama" else LlavaConfig(text_config=MistralConfig())
    results: list[Any] = []
    found = subject_of(LlavaForConditionalGeneration, config, Sound(), None, results)
    assert found is not None, results
    return found


def broken(adapter: Adapter, text: str = "llama") -> Subject:
    """The sound subject, served by another adapter."""
    sound = subject(text)
    return replace(sound, adapter=adapter, layout=adapter.locate(sound.model))


def fails(name: str, on: Subject) -> str:
    check, takes = next((check, takes) for other, check, takes in CHECKS if other == name)
    result = running.result_of(name, check, takes, on)
    assert result.ok is False, result
    return result.text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["llama", "mistral"])
def test_a_sound_adapter_passes(name: str, text: str) -> None:
    check = next(check for other, check, _ in CHECKS if other == name)
    assert check(subject(text))


def _hooked(sound: Subject, hook: Any, child: str = "") -> Subject:
    """The same subject, whose copies do something in (a child of) decoder layer 1 that nobody would expect."""

    def build(attention: str | None, window: int | None) -> Any:
        model = sound.build(attention, window)
        Sound().locate(model).layers[1].get_submodule(child).register_forward_pre_hook(hook, with_kwargs=True)
        return model

    model = build(None, None)
    return replace(sound, build=build, model=model, layout=Sound().locate(model))


def test_plain_masks_sees_attention_to_later_tokens() -> None:
    def both_ways(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": torch.zeros_like(kwargs["attention_mask"])}

    def narrow(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs["attention_mask"]
        return args, {
            **kwargs,
            "attention_mask": mask + torch.full_like(mask, torch.finfo(mask.dtype).min / 2).tril(-5),
        }

    assert "bidirectional attention: in decoder layers [1]" in fails("plain masks", _hooked(subject(), both_ways))
    assert "windows or chunks: in decoder layers [1]" in fails("plain masks", _hooked(subject(), narrow))


def test_plain_masks_sees_positions_of_more_than_one_kind() -> None:
    def other(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "position_embeddings": tuple(2 * table for table in kwargs["position_embeddings"])}

    assert "more than one kind: decoder layers [1]" in fails("plain masks", _hooked(subject(), other))


def test_plain_masks_sees_a_rotary_module_that_is_not_in_use() -> None:
    class WrongRotary(Sound):
        def locate(self, model: Any) -> Layout:
            layout = super().locate(model)
            return replace(layout, rotary=torch.nn.Identity())

    assert "do not come from Identity" in fails("plain masks", broken(WrongRotary()))


def test_windows_sees_what_is_not_refused() -> None:
    class Blind(Sound):
        def locate(self, model: Any) -> Layout:
            layout = super().locate(model)
            return replace(layout, text_config=_Windowless(layout.text_config))

    assert fails("windows", broken(Blind(), "mistral"))


class _Windowless:
    """A config that does not tell of its window."""

    sliding_window = None

    def __init__(self, config: Any) -> None:
        self.__dict__["config"] = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def test_reference_sees_a_layer_that_cares_how_its_mask_is_written() -> None:
    def fussy(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs["attention_mask"]
        factor = 1.5 if mask is not None and mask.is_floating_point() else 1.0
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * factor}

    assert "differ from the untouched" in fails("reference", _hooked(subject(), fussy, "self_attn"))


def test_cache_sees_entries_of_another_form() -> None:
    class OtherHeads(Sound):
        def locate(self, model: Any) -> Layout:
            layout = super().locate(model)
            return replace(layout, shape=replace(layout.shape, n_kv_heads=1, head_dim=512))

    assert "not 1 heads of width 512" in fails("cache", broken(OtherHeads()))


def test_keep_everything_sees_a_changed_bit() -> None:
    class Meddling(Sound):
        def take_deepstack(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
            embeds = arguments["inputs_embeds"]
            return {**arguments, "inputs_embeds": embeds * 1.001}, [torch.zeros(300, embeds.shape[-1])] * 3

    assert "differ from the untouched" in fails("keep everything", broken(Meddling()))


def test_drop_is_mask_sees_what_leaks_from_dropped_tokens() -> None:
    class Leaky(Sound):
        def take_deepstack(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
            width = arguments["inputs_embeds"].shape[-1]
            return arguments, [torch.full((300, width), 0.1)] * 3

    assert "dropping is not masking" in fails("drop is mask", broken(Leaky()))


def test_renumbered_sees_positions_that_are_off() -> None:
    class Late(torch.nn.Module):
        def __init__(self, rotary: Any) -> None:
            super().__init__()
            self.rotary, self.calls = rotary, 0

        def forward(self, hidden: Tensor, ids: Tensor) -> Any:
            self.calls += 1
            return self.rotary(hidden, ids * 3 if self.calls == 1 else ids)

    class Off(Sound):
        def locate(self, model: Any) -> Layout:
            layout = super().locate(model)
            return replace(layout, rotary=Late(layout.rotary))

    assert "dropping is not masking" in fails("renumbered", broken(Off()))


def test_row_is_batch_sees_rows_that_depend_on_others() -> None:
    class Confused(Sound):
        def modalities(self, layout: Layout, arguments: Any) -> Tensor:
            found = super().modalities(layout, arguments)
            if found.shape[0] > 1:
                found[1, found[1].nonzero()[:3, 0]] = 0
            return found

    assert fails("row is batch", broken(Confused()))


def test_restored_sees_what_is_left_behind() -> None:
    class Untidy(Sound):
        def modalities(self, layout: Layout, arguments: Any) -> Tensor:
            layout.entry.__dict__["left_behind"] = True
            return super().modalities(layout, arguments)

    try:
        assert "remain on the model" in fails("restored", broken(Untidy()))
    finally:
        subject().layout.entry.__dict__.pop("left_behind", None)


class _WrongOnes(tuple[Any, ...]):
    """Modules that are observed one layer late, but looked up right."""

    def __iter__(self) -> Iterator[Any]:
        return iter([self[-1], *(self[number] for number in range(len(self) - 1))])


def test_attention_rows_sees_rows_of_another_layer() -> None:
    class Shifted(Sound):
        def locate(self, model: Any) -> Layout:
            layout = super().locate(model)
            return replace(layout, attentions=_WrongOnes(layout.attentions))

    assert fails("attention rows", broken(Shifted()))


def test_noise_sees_a_sample_that_draws_anothers() -> None:
    class First(Sound):
        def pixels(self, layout: Layout, encoding: Encoding, item: int) -> Tensor:
            return super().pixels(layout, encoding, 0)

    assert "draws other noise" in fails("noise", broken(First()))


def test_grid_sees_rows_taken_for_columns() -> None:
    class Transposed(Sound):
        def places(self, layout: Layout, encoding: Encoding, item: int) -> Places:
            found = super().places(layout, encoding, item)
            return replace(found, row=found.col, col=found.row)

    assert "shows elsewhere" in fails("grid", broken(Transposed()))


# ---------------------------------------------------------------------- the whole


def test_a_failed_check_ends_the_test_or_takes_an_ability(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(subject: Subject) -> str:
        raise Failed("no")

    def bad(subject: Subject) -> str:
        raise RuntimeError("first line\nsecond line")

    def yes(subject: Subject) -> str:
        return "yes"

    monkeypatch.setattr(running, "CHECKS", (("a", no, frozenset({Need.GRID})), ("b", yes, frozenset()),
                                            ("c", bad, frozenset()), ("d", yes, frozenset())))  # fmt: skip
    test = self_test(LlavaForConditionalGeneration, LlavaConfig(), Sound())
    assert [(r.name, r.ok) for r in test.results[2:]] == [("a", False), ("b", True), ("c", False)]
    assert test.refusal is not None
    assert test.refusal.text == "RuntimeError: first line"
    assert test.unserved == {Need.GRID: "the self-test found: no"}


def test_what_cannot_be_built_is_refused_not_passed() -> None:
    config = LlavaConfig()
    config.text_config.hidden_act = "no such activation"
    test = self_test(LlavaForConditionalGeneration, config, Sound())
    assert test.refusal is not None
    assert "cannot be self-tested: KeyError" in test.refusal.text


def test_torchs_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    self_test(LlavaForConditionalGeneration, LlavaConfig(), Sound())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_adapter_that_needs_proof_is_proven_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unproven(Sound):
        needs_proof = True

    calls: list[Any] = []
    grid = selftest.Result("grid", False, "none", frozenset({Need.GRID}))

    def counted(*args: Any, **more: Any) -> Any:
        calls.append(args)
        return selftest.SelfTest("llava", "Llava", (grid,), running.layer_kinds(subject().layout))

    monkeypatch.setattr(running, "self_test", counted)
    monkeypatch.setattr(running, "_KNOWN", {})
    monkeypatch.setattr("tokentrim.session.adapter_of", lambda model: Unproven())
    model = subject().model
    shrunk: list[Any] = []
    small = running.small_config
    monkeypatch.setattr(running, "small_config", lambda config: (shrunk.append(config), small(config))[1])
    monkeypatch.setattr(running, "_DIGESTS", {})
    for _ in range(2):
        session = trim(model, "none")
        assert session.layout.unserved == {Need.GRID: "the self-test found: none"}
    assert len(calls) == len(shrunk) == 1
    with pytest.raises(UnsupportedError, match=r"what this model can give; got \['grid'\].*self-test found: none"):
        trim(model, "pool")


def test_what_fails_is_not_trimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unproven(Sound):
        needs_proof = True

    test = selftest.SelfTest("llava", "Llava", (selftest.Result("drop is mask", False, "off by 0.3"),))
    monkeypatch.setattr(running, "self_test", lambda *args, **more: test)
    monkeypatch.setattr(running, "_KNOWN", {})
    monkeypatch.setattr("tokentrim.session.adapter_of", lambda model: Unproven())
    with pytest.raises(UnsupportedError, match=r"pass the self-test.*drop is mask: off by 0\.3"):
        trim(subject().model, "none")


def test_layers_of_a_kind_that_the_copy_lacks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unproven(Sound):
        needs_proof = True

    monkeypatch.setattr(running, "_KNOWN", {})
    monkeypatch.setattr("tokentrim.session.adapter_of", lambda model: Unproven())
    model = running.subject_of(LlavaForConditionalGeneration, LlavaConfig(), Sound(), None, []).model
    trim(model, "none")
    Sound().locate(model).attentions[2].is_odd = True
    with pytest.raises(UnsupportedError, match=r"kinds that its small copy has; got .*is_odd=True"):
        trim(model, "none")


def test_an_adapter_is_not_trusted_with_decoders_that_it_was_not_made_for() -> None:
    """LLaVA's own adapter finds every module of these, and would prune them wrongly."""
    text = Gemma3TextConfig(num_hidden_layers=6, hidden_size=64, intermediate_size=64, num_attention_heads=2,
                            num_key_value_heads=1, head_dim=32, vocab_size=512)  # fmt: skip
    config = LlavaConfig(text_config=text, vision_config=subject().model.config.vision_config)
    model = LlavaForConditionalGeneration(config).eval()
    Sound().locate(model)
    with pytest.raises(UnsupportedError, match=r"the llava adapter was not made for.*plain masks: position embeddings"):
        trim(model, "none")
    with pytest.raises(UnsupportedError, match="not made for"):
        trim(subject().model, "sgl", guide=model)


def test_an_adapter_is_not_trusted_with_layers_of_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("tokentrim.session.proven", lambda model, adapter, layout: asked.append(adapter) or layout)
    model = copy.deepcopy(subject().model)
    layers = Sound().locate(model).layers
    layers[1].forward = partial(layers[1].forward)  # an instance's own is that of accelerate and the like
    trim(model, "none")
    assert not asked

    kind: Any = type(layers[0])

    class Drifted(kind):
        def forward(self, *args: Any, **more: Any) -> Any:
            return super().forward(*args, **more)

    layers[2].__class__ = Drifted
    trim(model, "none")
    assert [adapter.name for adapter in asked] == ["llava"]


# ---------------------------------------------------------------------- small configurations


def test_a_small_config_keeps_what_its_parts_share() -> None:
    config = LlavaConfig(
        image_token_index=31999, pad_token_id=31998, text_config={"vocab_size": 32000, "eos_token_id": 2}
    )
    small = small_config(config)
    assert small.image_token_id < small.text_config.vocab_size
    assert len({small.image_token_id, small.pad_token_id, small.text_config.eos_token_id}) == 3
    assert small.text_config.num_hidden_layers == 4
    assert config.text_config.num_hidden_layers == 32


def test_all_kinds_of_layers_survive_the_cut() -> None:
    from transformers import Gemma3Config

    small = small_config(Gemma3Config(), window=7)
    assert set(small.text_config.layer_types) == {"sliding_attention", "full_attention"}
    assert small.text_config.sliding_window == 7


RANKINGS = ("current", "previous", "block", "frozen", "accumulated")


@pytest.mark.parametrize(
    ("model_type", "rankings"),
    [
        *((name, RANKINGS) for name in ("llava", "qwen2_5_vl", "qwen3_vl")),
        *zip(("llava_next", "llava_next_video", "llava_onevision", "qwen2_vl"), zip(RANKINGS), strict=False),
    ],
)
def test_every_reading_of_st3_is_masking_step_by_step(model_type: str, rankings: tuple[str, ...]) -> None:
    """What each layer sees at each step, whatever ranks and returns; in turn where a decoder is like another's."""
    config = CONFIG_MAPPING[model_type]()
    adapter = registry("adapter").get(known_model_types()[model_type])()
    found = subject_of(model_class_of(config), config, adapter, None, [])
    assert found is not None
    for ranking in rankings:
        for evict in (True, False):
            spec = {"name": "st3", "start": 1, "stride": 1, "prune_ratio": 0.3, "ranking": ranking, "evict": evict}
            assert _against_reference(found, strategy_from(spec).strategy) < 1e-4
