"""generate keeps its contract under pruning: sampling, beams, streaming, several turns, mixed precision, training."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from tests.engine.cases import FIRST, OTHERS, SPECS, deviation, generate, merges, trimmed
from tests.engine.reference import reference_logits
from tests.models import IMAGE, PAD, alone, prompt, tiny_llava
from tokentrim.config.specs import strategy_from
from tokentrim.errors import UnsupportedError

_model = lru_cache(maxsize=8)(tiny_llava)
_SOME = ["st3", "random-boundary=0", "pool", "vta-ranking=frozen-every=5-floor=0.1", "composition"]
TOLERANCE = 1e-4


@pytest.mark.parametrize("name", _SOME)
def test_the_output_begins_with_the_whole_prompt(name: str) -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5], [2, "image", 9])
    with trimmed(model, SPECS[name], inputs):
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert out.shape == (2, inputs["input_ids"].shape[1] + 4)
    assert torch.equal(out[:, :-4], inputs["input_ids"])


@pytest.mark.parametrize("name", _SOME)
def test_sampling_repeats_under_a_seed(name: str) -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5])
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        with trimmed(model, SPECS[name], inputs):
            found.append(model.generate(**inputs, max_new_tokens=8, do_sample=True, num_return_sequences=3))
    assert found[0].shape[0] == 3
    assert torch.equal(found[0], found[1])
    assert len({tuple(line) for line in found[0].tolist()}) > 1


@pytest.mark.parametrize("name", _SOME)
def test_pruning_leaves_the_global_generator_alone(name: str) -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with trimmed(model, SPECS[name], inputs):
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "spec", [{"name": "none"}, {"name": "fastv", "keep_ratio": 1.0}, {"name": "vta", "floor": 1.0}]
)
def test_beams_that_keep_everything_are_the_untouched_beams(spec: Any) -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5], [9], [2, "image", 4, "image", 7])
    expected = model.generate(**inputs, max_new_tokens=6, num_beams=3, num_return_sequences=2, do_sample=False)
    with trimmed(model, spec, inputs):
        found = model.generate(**inputs, max_new_tokens=6, num_beams=3, num_return_sequences=2, do_sample=False)
    assert torch.equal(found, expected)


def _same_for_every_beam(name: str) -> bool:
    """Whether beams keep the same tokens, which a mask can express: none merges or evicts by its own attention."""
    strategy = strategy_from(SPECS[name]).strategy
    return not merges(strategy) and (strategy.temporal_part is None or "frozen" in name)


@pytest.mark.parametrize("name", [n for n in SPECS if (n in FIRST or "frozen" in n) and _same_for_every_beam(n)])
def test_the_best_beam_has_the_score_that_the_reference_gives_it(name: str) -> None:
    """Spatial parts choose the same tokens for every beam, so one trace row tells what the beam has seen."""
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5])
    with trimmed(model, SPECS[name], inputs) as session:
        out = model.generate(
            **inputs,
            max_new_tokens=7,
            num_beams=3,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            length_penalty=0.0,
        )
        trace = session.trace
    new = out.sequences[0, inputs["input_ids"].shape[1] :]
    logits = reference_logits(model, inputs, new[:-1], trace)[-len(new) :]
    expected = torch.log_softmax(logits, dim=-1).gather(1, new.unsqueeze(1)).sum()
    assert float(out.sequences_scores[0]) == pytest.approx(float(expected), abs=1e-3)


_FOLLOWED = [*_SOME, *(name for name in OTHERS if strategy_from(SPECS[name]).strategy.temporal_part is not None)]


@pytest.mark.parametrize("name", dict.fromkeys(_FOLLOWED))
def test_beams_in_a_ragged_batch_are_the_beams_of_the_row_alone(name: str) -> None:
    """Evictions, merges, noise and states follow their beam through every reordering.

    Of one configuration of every strategy the contract says the same: tests/testing/test_contract.py.
    """
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5], [2, "image", 4, "image", 7])
    options: dict[str, Any] = {"max_new_tokens": 7, "num_beams": 3, "num_return_sequences": 3, "do_sample": False}
    with trimmed(model, SPECS[name], inputs):
        found = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    for index, layout in enumerate(([3, "image", 5], [2, "image", 4, "image", 7])):
        single = prompt(model, layout, seed=index)
        single["pixel_values"] = inputs["pixel_values"][:1] if index == 0 else inputs["pixel_values"][1:]
        with trimmed(model, SPECS[name], single):
            own = model.generate(**single, **options)[:, single["input_ids"].shape[1] :]
        assert torch.equal(found[3 * index : 3 * index + 3], own)


@pytest.mark.parametrize("name", ["vta", "st3-evict=True", "vta-every=5"])
def test_the_trace_of_a_beam_is_what_its_cache_holds(name: str) -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5])
    seen: list[list[torch.Tensor]] = []
    with trimmed(model, SPECS[name], inputs) as session:
        language_model = model.model.language_model

        def look(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            seen.append([layer.stream.vis_ids.clone() for layer in kwargs["past_key_values"].layers])

        handle = language_model.register_forward_hook(look, with_kwargs=True)
        model.generate(**inputs, max_new_tokens=9, num_beams=4, do_sample=False)
        handle.remove()
        trace = session.trace
    for step, layers in enumerate(seen):
        for layer, ids in enumerate(layers):
            for beam in range(4):
                assert trace.cached(layer, step, beam).tolist() == [i for i in ids[beam].tolist() if i >= 0]


class _Collect(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.tokens.append(-1)


def test_a_streamer_sees_the_prompt_and_then_every_token() -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5])
    streamer = _Collect()
    with trimmed(model, SPECS["st3"], inputs):
        out = model.generate(**inputs, max_new_tokens=5, do_sample=False, streamer=streamer)
    assert streamer.tokens == [*out[0].tolist(), -1]


@pytest.mark.parametrize("name", ["fastv-query=last", "pool"])
def test_generated_tokens_can_be_rolled_back(name: str) -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5], [1, "image", 2])
    guess, right = torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.tensor([[11], [12]])
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 4, dtype=torch.long)], dim=1)
    length, found = inputs["input_ids"].shape[1], []
    with trimmed(model, SPECS[name], inputs), torch.no_grad():
        for wrong in (False, True):
            cache = model(**inputs, use_cache=True).past_key_values
            model(input_ids=guess[:, :1], attention_mask=mask[:, :-3], past_key_values=cache)
            if wrong:
                model(input_ids=guess[:, 1:], attention_mask=mask[:, :-1], past_key_values=cache)
                cache.crop(-2)
            assert cache.get_seq_length() == length + 1
            found.append(model(input_ids=right, attention_mask=mask[:, :-2], past_key_values=cache).logits)
    assert deviation(found[1], found[0]) < 1e-6


@pytest.mark.parametrize("name", ["fastv-query=last", "random-boundary=0", "st3", "vta", "none"])
def test_a_second_turn_continues_the_first(name: str) -> None:
    """Text after an answer, on the cache that generate returned: the pruned image stays pruned."""
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5])
    with trimmed(model, SPECS[name], inputs) as session:
        first = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        follow = torch.cat([first.sequences, torch.tensor([[11, 12, 13]])], dim=1)
        second = model.generate(
            input_ids=follow,
            past_key_values=first.past_key_values,
            max_new_tokens=4,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        trace, report = session.trace, session.report()
    length = inputs["input_ids"].shape[1]
    new = second.sequences[0, length:]
    assert torch.equal(second.sequences[:, : follow.shape[1]], follow)
    # Forwards 1 to 3 took one token each; the 4th took the last token of the answer and the three of the question.
    steps = [1, 2, 3, 4, 4, 4, 4, 5, 6, 7]
    expected = reference_logits(model, inputs, new[:-1], trace, steps=steps)[length + 6 :]
    assert deviation(torch.stack(second.logits, dim=1)[0], expected) < TOLERANCE
    assert report.prompts == 1
    assert report.decode_steps == 7


def test_a_second_turn_in_a_padded_batch_is_each_row_alone() -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5], [2, "image", 9, "image", 1])
    asked = [[11, 12, 13], [14]]
    found: list[torch.Tensor] = []
    for rows in ([0, 1], [0], [1]):
        batch = dict(inputs) if len(rows) == 2 else alone(inputs, rows[0], 16)
        with trimmed(model, SPECS["st3"], batch):
            first = model.generate(**batch, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
            width = max(len(asked[row]) for row in rows)
            question = torch.tensor([[PAD] * (width - len(asked[row])) + asked[row] for row in rows])
            mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
            mask = torch.cat([mask, torch.ones(len(rows), 4, dtype=torch.long), (question != PAD).long()], dim=1)
            second = model.generate(
                input_ids=torch.cat([first.sequences, question], dim=1),
                attention_mask=mask,
                do_sample=False,
                past_key_values=first.past_key_values,
                max_new_tokens=4,
                return_dict_in_generate=True,
                output_logits=True,
            )
        found.append(torch.stack(second.logits, dim=1))
    assert deviation(found[0][0], found[1][0]) < TOLERANCE
    assert deviation(found[0][1], found[2][0]) < TOLERANCE


@pytest.mark.parametrize(
    "name", ["keep all", "fastv-query=last", "random-boundary=0", "vta", "st3", "vta-ranking=frozen"]
)
def test_a_later_mask_hides_what_was_said(name: str) -> None:
    """Words and visual tokens of the prompt and of the answer, hidden at some steps and shown again at others."""
    spec, model = {"name": "fastv", "keep_ratio": 1.0} if name == "keep all" else SPECS[name], _model(side=4)
    inputs = prompt(model, [3, "image", 5])
    length, new = inputs["input_ids"].shape[1], torch.tensor([31, 32, 33, 34, 35, 36])
    one, other = torch.tensor([1, 4, 5, 6, 7, 8, 20, length]), torch.arange(10, 17)
    steps: list[tuple[slice, torch.Tensor | None]] = [
        (slice(0, 1), None), (slice(1, 4), one), (slice(4, 5), other), (slice(5, 6), None)
    ]  # fmt: skip
    with trimmed(model, spec, inputs) as session, torch.no_grad():
        out, found = model(**inputs, use_cache=True), list[torch.Tensor]()
        for here, hidden in steps:
            mask = torch.ones(1, length + here.stop, dtype=torch.long)
            if hidden is not None:
                mask[0, hidden] = 0
            step = {"past_key_values": out.past_key_values, "attention_mask": None if here.start == 5 else mask}
            places = torch.arange(length + here.start, length + here.stop).unsqueeze(0)
            found.append(model(new[here].unsqueeze(0), position_ids=places, **step).logits[0])
        trace = session.trace
    forwards = {token: number for number, (here, _) in enumerate(steps, start=1) for token in range(6)[here]}
    unseen = {token: hidden for here, hidden in steps if hidden is not None for token in range(6)[here]}
    expected = reference_logits(model, inputs, new, trace, steps=list(forwards.values()), hidden_from=unseen)
    assert deviation(torch.cat(found), expected[length:]) < TOLERANCE


@pytest.mark.parametrize("beams", [1, 2])
def test_generate_reads_a_new_mask_and_goes_on_with_it(beams: int) -> None:
    """With everything kept, a second turn is the untouched model's, whatever its mask hides of the first."""
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5], [2, "image", 9])
    found: list[torch.Tensor] = []
    for spec in ({"name": "none"}, {"name": "fastv", "keep_ratio": 1.0}):
        with trimmed(model, spec, inputs):
            first = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
            ids = torch.cat([first.sequences, torch.tensor([[11, 12], [PAD, 13]])], dim=1)
            mask = (ids != PAD).long()
            mask[:, 9:19] = 0
            more = {"past_key_values": first.past_key_values, "attention_mask": mask, "num_beams": beams}
            if beams > 1:
                first.past_key_values.batch_repeat_interleave(beams)
            found.append(model.generate(ids, **more, max_new_tokens=4, do_sample=False))
    assert torch.equal(*found)


def test_a_mask_of_the_new_tokens_alone_is_refused() -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5])
    with trimmed(model, SPECS["st3"], inputs), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        for mask in (torch.ones(1, 2), torch.ones(1, 25)):
            with pytest.raises(UnsupportedError, match=r"be \[1, 26\]: all columns"):
                model(torch.tensor([[5, 6]]), attention_mask=mask, past_key_values=cache)
        with pytest.raises(UnsupportedError, match="be 2-D"):
            model(torch.tensor([[5, 6]]), attention_mask=torch.zeros(1, 1, 2, 26), past_key_values=cache)
        model(torch.tensor([[5, 6]]), attention_mask=torch.ones(1, 26), past_key_values=cache)


@pytest.mark.parametrize("name", _SOME)
def test_bfloat16_runs_and_keeps_the_planned_counts(name: str) -> None:
    model = _model(side=4, dtype=torch.bfloat16)
    inputs = prompt(model, [3, "image", 5], [2, "image", 9, "image", 1])
    with trimmed(model, SPECS[name], inputs) as session:
        ids, logits = generate(model, inputs, 8)
        assert session.layout.shape.bytes_per_element == 2
        assert session.report().kv_peak_bytes > 0
    assert ids.shape == (2, 8)
    assert bool(logits.isfinite().all())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["fastv-query=last", "random-boundary=0", "pool", "pvtp-query=text"])
def test_gradients_reach_what_was_kept_and_nothing_else(name: str, training: bool) -> None:
    model = tiny_llava(side=4)
    model.train(training)
    inputs = prompt(model, [3, "image", 5], [2, "image", 9])
    picture = inputs["input_ids"] == IMAGE
    labels = inputs["input_ids"].masked_fill(picture | picture.roll(1, dims=1), -100)
    embedded: list[torch.Tensor] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        embedded.append(kwargs["inputs_embeds"].detach().requires_grad_())
        return args, {**kwargs, "inputs_embeds": embedded[-1]}

    handle = model.model.language_model.register_forward_pre_hook(look, with_kwargs=True)
    with trimmed(model, SPECS[name], inputs) as session:
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        trace = session.trace
    handle.remove()
    norms = embedded[0].grad.norm(dim=-1)
    for row in range(2):
        text = (inputs["input_ids"][row] != IMAGE) & (inputs["input_ids"][row] != PAD)
        assert bool((norms[row, text][:-1] > 0).all())
        places = torch.nonzero(inputs["input_ids"][row] == IMAGE)[:, 0]
        kept = torch.zeros(16, dtype=torch.bool)
        kept[trace.kept(0, row)] = True
        assert bool((norms[row, places[kept]] > 0).all())
        if name == "random-boundary=0":
            assert bool((norms[row, places[~kept]] == 0).all())
        if name == "pool":  # every token went into the mean of its cell
            assert bool((norms[row, places] > 0).all())


@pytest.mark.parametrize("name", ["st3", "random-boundary=0", "pool"])
def test_a_text_prompt_runs_untouched_and_the_report_says_so(name: str) -> None:
    model = _model(side=4)
    inputs = prompt(model, [9], [4])
    expected = generate(model, inputs, 5)
    with trimmed(model, SPECS[name], inputs) as session:
        found = generate(model, inputs, 5)
        report = session.report()
        first = model.generate(
            **prompt(model, [6]),
            max_new_tokens=3,
            do_sample=False,
            past_key_values=DynamicCache(),
            return_dict_in_generate=True,
        )
        follow = torch.cat([first.sequences, torch.tensor([[11, 12]])], dim=1)
        model.generate(input_ids=follow, past_key_values=first.past_key_values, max_new_tokens=3, do_sample=False)
    assert torch.equal(found[1], expected[1])
    assert report.rows == 2
    assert report.pruning_events == 0
    assert any("2 of 2 samples have no image" in note for note in report.notes)
