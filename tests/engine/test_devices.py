"""Decoder layers on several devices: what one layer leaves to another is used where that one runs, to the bit."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.cases import FIRST as EVERY, RENUMBERED, SPECS, dealt, generate, trimmed
from tests.every_family import FAMILIES
from tests.families import Family
from tests.pretended import Pretending, spread
from tokentrim.engine.seams import clock
from tokentrim.engine.tokens.stream import Stream
from tokentrim.errors import UnsupportedError
from tokentrim.session import trim
from tokentrim_strategies.replay import Replay

pytest.importorskip("accelerate")
NEW = 4
FIRST, LAST = "cpu:1", "cpu:3"
CASES = {**SPECS, **{f"renumber-{name}": RENUMBERED[name] for name in ("fastv-query=last", "st3", "composition")}}
"""Configurations, and some under new positions, which the engine gives whatever the strategy."""
QUICK = (
    "composition",
    "sparsevlm",
    "pvtp-stride=1-heredity=3",
    "dycoke",
    "renumber-fastv-query=last",
    "yopo",
    "st3",
    "random-boundary=0",
)
"""A composition, states that outlive a boundary, rows that another layer lends, new positions, edits, noise."""


def moved(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(FIRST) for name, value in inputs.items()}


def placed(model: Any) -> Any:
    """The model as ``device_map`` spreads it: pictures and embeddings on the first device, layers on three."""
    language, layers = model.model.language_model, len(model.model.language_model.layers)
    places = {f"model.{name}": FIRST for name, _ in model.model.named_children() if name != "language_model"}
    for name, _ in language.named_children():
        places[f"model.language_model.{name}"] = LAST if name == "norm" else FIRST
    del places["model.language_model.layers"]
    for index in range(layers):
        places[f"model.language_model.layers.{index}"] = f"cpu:{1 + index * 3 // layers}"
    return spread(model, {**places, "lm_head": LAST})


FURTHER = ("vta-ranking=frozen-every=5-floor=0.1", "st3-evict=True-ranking=block", "sparsevlm-version=v1.0-scale=2.0")
"""What other parameters keep from one layer, or one step, to the next."""
AXES = ("st3", "renumber-fastv-query=last", "composition", "framefusion-cost=0.6-latest=1", "visionzip-contextual=0.4")


@lru_cache(maxsize=3)
def both(name: str) -> tuple[Family, Any, Any]:
    """A family, its model on one device, and the same spread over three."""
    family = FAMILIES[name]
    return family, family.model(), placed(family.model())


def agree(name: str, spec: Any, *, rows: bool = True, **options: Any) -> None:
    """Run a strategy on one device and on three, and compare."""
    family, model, apart = both(name)
    inputs = family.prompt(model, *(family.ragged if rows else (family.row,)))
    with trimmed(model, spec, inputs) as session:
        tokens, logits = generate(model, inputs, NEW, **options)
    with Pretending() as pretending:
        with trimmed(apart, spec, inputs) as there:
            found, raw = generate(apart, moved(inputs), NEW, **options)
        report = there.report()
    assert torch.equal(found.cpu(), tokens)
    assert torch.equal(raw.cpu(), logits)
    assert there.trace.rows_equal(session.trace)
    assert report.kv_end_bytes == session.report().kv_end_bytes
    assert {torch.device(f"cpu:{number}") for number in (1, 2, 3)} <= set(pretending.met)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in dict.fromkeys((*QUICK, *EVERY, *FURTHER))
    ],
)
def test_layers_on_several_devices_give_the_bits_of_one(name: str) -> None:
    agree("llava", CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family"), dealt(2 * AXES, ("qwen2.5-vl", "qwen3-vl", "llava-next")))
def test_axes_and_features_for_deeper_layers_follow(family: str, name: str) -> None:
    agree(family, CASES[name])


@pytest.mark.parametrize("name", ["dycoke", "st3-evict=True-ranking=block", "renumber-st3"])
def test_beams_change_places_on_every_device(name: str) -> None:
    agree("llava", CASES[name], num_beams=2)


def test_what_is_read_by_column_stands_where_it_was() -> None:
    family, model, apart = both("llava")
    inputs = family.prompt(model, *family.ragged)
    wanted = {"output_hidden_states": True, "use_cache": False}
    with trim(model, "fastv"), torch.no_grad():
        here = model(**inputs, **wanted)
    with Pretending(), trim(apart, "fastv"), torch.no_grad():
        there = apart(**moved(inputs), **wanted)
        assert {str(states.device) for states in there.hidden_states} == {FIRST}  # accelerate brings them together
    for one, other in zip(here.hidden_states, there.hidden_states, strict=True):
        assert torch.equal(one, other.cpu())


def test_a_second_turn_continues_every_layer_on_its_device() -> None:
    family, model, apart = both("llava")
    inputs = family.prompt(model, family.row)
    more = torch.tensor([[5, 6, 7]])

    def turns(model: Any, inputs: dict[str, Tensor], more: Tensor) -> Tensor:
        with trimmed(model, SPECS["st3"], inputs), torch.no_grad():
            first = model(**inputs, use_cache=True)
            mask = more.new_ones(1, inputs["input_ids"].shape[1] + more.shape[1])
            mask[:, 1] = 0  # a column of the prompt that this turn may not see
            return model(input_ids=more, attention_mask=mask, past_key_values=first.past_key_values).logits

    expected = turns(model, inputs, more)
    with Pretending():
        found = turns(apart, moved(inputs), more.to(FIRST))
    assert torch.equal(found.cpu(), expected)


def test_a_trace_replays_across_devices() -> None:
    family, model, apart = both("llava")
    inputs = family.prompt(model, *family.ragged)
    with trim(model, "st3") as session:
        generate(model, inputs, NEW)
    replay = Replay.of(session.trace)
    with trim(model, replay):
        expected = generate(model, inputs, NEW)
    with Pretending(), trim(apart, replay) as again:
        found = generate(apart, moved(inputs), NEW)
    assert torch.equal(found[1].cpu(), expected[1])
    assert again.trace.rows_equal(session.trace)


def test_a_tower_and_a_projector_elsewhere_serve_every_boundary() -> None:
    family, model, _ = both("llava")
    language = model.model.language_model
    places = {
        "model.language_model.embed_tokens": FIRST,
        "model.vision_tower": "cpu:2",
        "model.multi_modal_projector": LAST,
        "model.language_model.norm": "cpu:2",
        "model.language_model.rotary_emb": "cpu:2",
        **{f"model.language_model.layers.{n}": f"cpu:{2 + n % 2}" for n in range(len(language.layers))},
        "lm_head": LAST,
    }
    apart, inputs = spread(model, places), family.prompt(model, *family.ragged)
    for name in ("composition", "renumber-st3", "scope", "visionzip-contextual=0.4", "dart", "pyramiddrop"):
        with trimmed(model, CASES[name], inputs) as session:
            expected = generate(model, inputs, NEW)
        with Pretending(), trimmed(apart, CASES[name], inputs) as there:
            found = generate(apart, moved(inputs), NEW)
        # Copies have strides of their own, by which products are summed in another order: without tokentrim, too.
        torch.testing.assert_close(found[1].cpu(), expected[1], atol=1e-5, rtol=1e-5)
        assert there.trace.rows_equal(session.trace), name


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_steps_are_refused_across_devices() -> None:
    _, _, apart = both("llava")
    wanted = r"run compiled must run on one device.*'cpu:1', 'cpu:2', 'cpu:3'.*Leave compile=True out"
    with pytest.raises(UnsupportedError, match=wanted), trim(apart, "st3", compile=True):
        pass
    agree("llava", "st3", rows=False)  # nothing is left of the attempt


def test_tensors_that_meet_on_two_devices_are_told() -> None:
    with Pretending():
        here, there = torch.ones(2, device="cpu:1"), torch.ones(2, device="cpu:2")
        with pytest.raises(RuntimeError, match="add"):
            _ = here + there
        assert torch.equal((here + there.to("cpu:1")).cpu(), torch.full((2,), 2.0))


def test_a_stream_is_one_object_per_device() -> None:
    visual = torch.tensor([[False, True, True, False]])
    here = Stream.of_prompt(visual, None)
    assert here.on(torch.device("cpu")) is here
    with Pretending():
        there = here.on(torch.device("cpu:1"))
        assert there.device == torch.device("cpu:1")
        assert here.on(torch.device("cpu:1")) is there
        assert there.on(torch.device("cpu")) is here
        assert there.on(torch.device("cpu:2")) is here.on(torch.device("cpu:2"))


def test_durations_end_on_the_device_they_began_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two events of different GPUs have no time between them, and a pass is over when its last device is done."""

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.place: Any = None

        def record(self, stream: Any) -> None:
            self.place = stream.device

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: Event) -> float:
            assert end.place == self.place
            return 1500.0

    waited: list[tuple[Any, Any]] = []

    def stream_of(device: torch.device) -> Any:
        return SimpleNamespace(device=device, wait_event=lambda event: waited.append((device, event.place)))

    monkeypatch.setattr(clock.torch.cuda, "Event", Event)
    monkeypatch.setattr(clock.torch.cuda, "current_stream", stream_of)
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    timer = clock.Clock(devices=(first, second))
    with timer.timed("selection", second):
        pass
    assert not waited
    timer.stop("prefill", timer.start(first), everywhere=True)
    assert waited == [(first, second)]
    assert timer.seconds("selection") == timer.seconds("prefill") == 1.5
