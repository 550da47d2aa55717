"""Everything that a call of ``generate`` or of the model may ask for, one small object each, with the verdict.

``right`` means: under ``none`` every number is the untouched model's; under a strategy that prunes, the result is the
untouched model's with masks where tokens were dropped, or the result of the same request without the feature.
``refused`` means: an error of ours, before a token is made, that says what to do instead.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.generation import utils
from transformers.generation.streamers import BaseStreamer

from tests.engine.reference import reference_logits
from tests.families import Family
from tests.generate.bench import KINDS, NEW, Bench, group_of
from tests.models import IMAGE
from tokentrim.session import trim, unwrapped

Found = list[Tensor]


@dataclass(frozen=True)
class Feature:
    """One row of the table.

    Attributes:
        name: as the table says it.
        run: does it, and returns what came out.
        same_as: what should have come out, by other means; runs while the session is open, after ``run``.
        build: makes the model (default: the family's shared one).
        refused: group of strategies (``none``, ``spatial``, ``temporal``) -> what the error says.
        instead: what to do where it is refused, for the table.
        leaves_out: kinds of strategy that ``same_as`` has no means for.
        serves: whether a family takes such prompts.
        tolerance: of what is not compared bit by bit, in units of the largest expected number.
        outside: the error comes when the context is entered.
        elsewhere: a test of its own, where one process does not do.
        unfused: whether it runs without the kernels that torch would generate, which takes a minute.
        recent: whether the oldest supported transformers cannot do it, with and without tokentrim.
        expands: whether rows are repeated, which that release does wrongly with encoded videos of LLaVA-NeXT-Video.
        unproven: groups of strategies for which the test has never been able to run.
        first_only: kinds of strategy that are tried with the first family alone.
    """

    name: str
    run: Callable[[Bench], Found]
    same_as: Callable[[Bench], Found] | None = None
    build: Callable[[Family, dict[str, Any]], Any] = lambda family, kept: family.model()
    refused: Mapping[str, str] = field(default_factory=dict[str, str])
    instead: str = ""
    leaves_out: tuple[str, ...] = ()
    serves: Callable[[Family], bool] = lambda family: True
    tolerance: float = 2e-4
    outside: bool = False
    elsewhere: str = ""
    unfused: bool = False
    first_only: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    recent: bool = False
    expands: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of strategy that it is tried with."""
        return tuple(kind for kind in KINDS if kind not in self.leaves_out)

    def verdict(self, group: str) -> str:
        """``right`` or ``refused``, for one column of the table."""
        if group in self.unproven:
            return "never run"
        return "refused" if group in self.refused else "right"


RECENT = hasattr(utils, "_slice_mm_encoder_output")
"""Whether transformers hands pictures to chunks of a prompt, which came with other changes that features need."""


def _offloads(family: Family) -> bool:
    """Whether generate itself finds all weights: those of a model's own are not brought when it encodes pictures."""
    return _llava(family) or family.name.startswith("qwen")


def _llava(family: Family) -> bool:
    return family.name == "llava"


PRUNED = ("spatial", "temporal")

# ---------------------------------------------------------------------- batches


def _batch(bench: Bench) -> Found:
    tokens, logits = bench.generate(bench.prompt(*bench.family.ragged))
    return [logits[row] for row in range(len(tokens))]


def _rows_alone(bench: Bench) -> Found:
    model, layouts = bench.model, bench.family.ragged
    return [bench.generate(bench.family.alone(model, layouts, row))[1][0] for row in range(len(layouts))]


def _several(bench: Bench) -> Found:
    return bench.generate(_two_pictures(bench))


def _two_pictures(bench: Bench) -> dict[str, Any]:
    picture = next(part for part in bench.family.row if isinstance(part, str))
    return bench.prompt((2, picture, 4, "image", 6))


def _several_by_mask(bench: Bench) -> Found:
    tokens = bench.found[0]
    return [tokens, bench.reference(_two_pictures(bench), tokens[0]).unsqueeze(0)]


def _mixed(bench: Bench) -> dict[str, Any]:
    return bench.prompt((2, "image", 3, "video:2", 4))


def _mixed_by_mask(bench: Bench) -> Found:
    tokens = bench.found[0]
    return [tokens, bench.reference(_mixed(bench), tokens[0]).unsqueeze(0)]


def _text_columns(bench: Bench, inputs: dict[str, Any]) -> Tensor:
    real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    return real & ~bench.family.placeholders(inputs)


def _right_padded(bench: Bench) -> Found:
    inputs = bench.prompt(*bench.family.ragged, padding="right")
    with torch.no_grad():
        logits = bench.model(**inputs).logits
    return [line[here] for line, here in zip(logits, _text_columns(bench, inputs), strict=True)]


def _unpadded(bench: Bench) -> Found:
    found: Found = []
    for row in range(len(bench.family.ragged)):
        single = bench.family.alone(bench.model, bench.family.ragged, row)
        with torch.no_grad():
            found.append(bench.model(**single).logits[0][_text_columns(bench, single)[0]])
    return found


# ---------------------------------------------------------------------- ways of decoding


def _greedy(**options: Any) -> Callable[[Bench], Found]:
    return lambda bench: bench.generate(bench.one(), **options)


def _by_mask(bench: Bench) -> Found:
    tokens = bench.found[0]
    return [tokens, bench.reference(bench.one(), tokens[0]).unsqueeze(0)]


def _beams(bench: Bench) -> Found:
    inputs = bench.one()
    out = bench.model.generate(
        **inputs, max_new_tokens=NEW, num_beams=3, num_return_sequences=3, do_sample=False, length_penalty=0.0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    return [out.sequences[:, inputs["input_ids"].shape[1] :], out.sequences_scores]


def _beams_said(bench: Bench) -> Found:
    inputs, (tokens, _) = bench.one(), bench.found
    scores = [
        torch.log_softmax(bench.said(inputs, line).float(), dim=-1).gather(1, line.unsqueeze(1)).sum()
        for line in tokens
    ]
    return [tokens, torch.stack(scores)]


def _sampled(bench: Bench) -> Found:
    torch.manual_seed(5)
    return bench.generate(bench.one(), do_sample=True, num_return_sequences=3)


def _sampled_said(bench: Bench) -> Found:
    inputs, (tokens, _) = bench.one(), bench.found
    return [tokens, torch.stack([bench.said(inputs, line) for line in tokens])]


class _Collect(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[Tensor] = []

    def put(self, value: Tensor) -> None:
        self.tokens.append(value.flatten())

    def end(self) -> None: ...


def _streamed(bench: Bench) -> Found:
    streamer, inputs = _Collect(), bench.one()
    bench.generate(inputs, streamer=streamer)
    return [torch.cat(streamer.tokens)[inputs["input_ids"].shape[1] :]]


def _assistant(bench: Bench) -> Found:
    helper = bench.kept.setdefault("helper", bench.family.model(seed=3))
    return bench.generate(bench.one(), assistant_model=helper, new=8)


def _looked_up(bench: Bench) -> Found:
    inputs = bench.one()
    inputs["input_ids"][0, -4:] = torch.tensor([7, 8, 7, 8])
    return bench.generate(inputs, prompt_lookup_num_tokens=3, new=8)


def _not_looked_up(bench: Bench) -> Found:
    inputs = bench.one()
    inputs["input_ids"][0, -4:] = torch.tensor([7, 8, 7, 8])
    return bench.generate(inputs, new=8)


def _without_cache(bench: Bench) -> Found:
    inputs = bench.one()
    with torch.no_grad():
        logits = bench.model(**inputs, use_cache=False).logits[0][_text_columns(bench, inputs)[0]]
    return [bench.generate(inputs, use_cache=False)[1][0, 0], logits]


def _with_cache(bench: Bench) -> Found:
    inputs = bench.one()
    with torch.no_grad():
        logits = bench.model(**inputs, use_cache=True).logits[0][_text_columns(bench, inputs)[0]]
    return [bench.generate(inputs)[1][0, 0], logits]


# ---------------------------------------------------------------------- caches and turns


def _static_object(bench: Bench) -> Found:
    inputs = bench.one()
    config = bench.model.config.get_text_config()
    return bench.generate(inputs, past_key_values=StaticCache(config=config, max_cache_len=128))


def _needs_cuda(**options: Any) -> Callable[[Bench], Found]:
    def run(bench: Bench) -> Found:
        if bench.kind == "none" and not torch.cuda.is_available():
            pytest.skip("an offloading cache needs a GPU, with and without tokentrim")
        return bench.generate(bench.one(), **options)

    return run


def _quantized(bench: Bench) -> Found:
    if bench.kind == "none":
        pytest.importorskip("optimum.quanto")
    return bench.generate(bench.one(), cache_implementation="quantized")


def _own_cache(bench: Bench) -> Found:
    return bench.generate(bench.one(), past_key_values=DynamicCache())


_QUESTION = torch.tensor([[11, 12, 13]])


def _first_turn(bench: Bench) -> Any:
    return bench.model.generate(**bench.one(), max_new_tokens=4, do_sample=False, return_dict_in_generate=True)


def _second_turn(bench: Bench) -> Found:
    first = _first_turn(bench)
    whole = {"input_ids": torch.cat([first.sequences, _QUESTION], dim=1), "past_key_values": first.past_key_values}
    bench.kept["turn"] = first.sequences[0]
    return bench.generate(whole)


def _turn_at_once(bench: Bench) -> Found:
    """By the reference; forwards 1 to 3 took one token each, the 4th the answer's last and the question."""
    inputs, tokens = bench.one(), bench.found[0]
    length = inputs["input_ids"].shape[1]
    new = torch.cat([bench.kept["turn"][length:], _QUESTION[0], tokens[0]])
    if bench.kind == "merging" or not _llava(bench.family):
        return [tokens, bench.said(inputs, new)[-NEW:].unsqueeze(0)]
    assert bench.session is not None
    trace = bench.session.trace
    steps = [1, 2, 3, 4, 4, 4, 4, *range(5, 5 + NEW - 1)]
    with bench.paused():
        logits = reference_logits(bench.model, inputs, new[:-1], trace, steps=steps, renumber=bench.kind == "renumber")
    return [tokens, logits[-NEW:].unsqueeze(0)]


def _turn_outside(bench: Bench) -> Found:
    with torch.inference_mode():
        first = _first_turn(bench)
    ids = torch.cat([first.sequences, _QUESTION], dim=1)
    return bench.generate({"input_ids": ids, "past_key_values": first.past_key_values})


_HIDDEN = torch.arange(1, 9)
"""Columns of the prompt, words and a part of the picture, that a later turn does not see."""


def _hidden_turn(bench: Bench) -> Found:
    first = _first_turn(bench)
    ids = bench.kept["turn"] = torch.cat([first.sequences, _QUESTION], dim=1)
    mask, places = torch.ones_like(ids), torch.arange(ids.shape[1]).unsqueeze(0)
    mask[:, _HIDDEN] = 0
    more = {"attention_mask": mask, "position_ids": places[:, -4:], "past_key_values": first.past_key_values}
    with torch.no_grad():
        return [bench.model(ids[:, -4:], **more).logits[0]]


def _hidden_turn_by_mask(bench: Bench) -> Found:
    assert bench.session is not None
    inputs, trace = bench.one(), bench.session.trace
    new = bench.kept["turn"][0, inputs["input_ids"].shape[1] :]
    unseen, steps = dict.fromkeys(range(3, 7), _HIDDEN), [1, 2, 3, 4, 4, 4, 4]
    options = {"steps": steps, "hidden_from": unseen, "renumber": bench.kind == "renumber"}
    with bench.paused():
        return [reference_logits(bench.model, inputs, new, trace, **options)[-4:]]


def _picture_later(bench: Bench) -> Found:
    first = _first_turn(bench)
    more = bench.prompt((2, "image", 3), seed=7)
    whole = {
        **more,
        "input_ids": torch.cat([first.sequences, more["input_ids"]], dim=1),
        "past_key_values": first.past_key_values,
    }
    return bench.generate(whole)


# ---------------------------------------------------------------------- the model without generate


def _forward(bench: Bench) -> Found:
    inputs = bench.one()
    ones = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        calls = [
            bench.model(**inputs),
            bench.model(**inputs, attention_mask=ones),
            bench.model(**inputs, use_cache=True),
        ]
    return [out.logits[0][_text_columns(bench, inputs)[0]] for out in calls]


def _forward_by_mask(bench: Bench) -> Found:
    inputs = bench.one()
    logits = bench.masked(inputs, torch.zeros(0, dtype=torch.long))[_text_columns(bench, inputs)[0]]
    return [logits] * 3


def _packed(bench: Bench) -> Found:
    inputs = _two_pictures(bench)
    length = inputs["input_ids"].shape[1]
    ids = torch.cat([torch.arange(length - 10), torch.arange(10)]).unsqueeze(0)
    with torch.no_grad():
        return [bench.model(**inputs, position_ids=ids, use_cache=False).logits]


def _learning(family: Family, kept: dict[str, Any]) -> Any:
    model = family.build()
    model.requires_grad_(True)
    return model.train()


def _loss(bench: Bench, inputs: dict[str, Any]) -> Found:
    bench.model.zero_grad()
    out = bench.model(**inputs, labels=_labels(inputs["input_ids"]))
    out.loss.backward()
    return [out.loss.detach(), *_gradients(bench.model)]


def _labels(ids: Tensor) -> Tensor:
    """Every text token that follows another."""
    picture = ids == IMAGE
    behind = torch.cat([torch.zeros_like(picture[:, :1]), picture[:, :-1]], dim=1)
    return ids.masked_fill(picture | behind, -100)


def _labelled_behind_a_picture(bench: Bench) -> Found:
    inputs = bench.one()
    labels = inputs["input_ids"].masked_fill(bench.family.placeholders(inputs), -100)
    return [bench.model(**inputs, labels=labels).loss.detach()]


def _gradients(model: Any) -> Found:
    wanted = ("language_model.layers.0.self_attn.q_proj.weight", "linear_2.weight", "lm_head.weight")
    return [parameter.grad.clone() for name, parameter in model.named_parameters() if name.endswith(wanted)]


def _trained(bench: Bench) -> Found:
    return _loss(bench, bench.one())


_SAID, _NOTHING_SAID = torch.tensor([31, 32, 33]), torch.zeros(0, dtype=torch.long)


def _trained_by_steps(bench: Bench) -> Found:
    bench.model.zero_grad()
    out = bench.model(**bench.one(), use_cache=True)
    logits = [bench.model(token.view(1, 1), past_key_values=out.past_key_values).logits[0, 0] for token in _SAID]
    return _answered(bench.model, torch.stack(logits))


def _trained_by_steps_by_mask(bench: Bench) -> Found:
    assert bench.session is not None
    inputs, trace = bench.one(), bench.session.trace
    bench.model.zero_grad()
    with bench.paused():
        logits = _learning_logits(bench.model, inputs, trace, _SAID, renumber=bench.kind == "renumber")
    return _answered(bench.model, logits[-len(_SAID) :])


def _answered(model: Any, logits: Tensor) -> Found:
    loss = torch.nn.functional.cross_entropy(logits, _SAID + 1)
    loss.backward()
    return [loss.detach(), *_gradients(model)]


_ENDS_IN_A_PICTURE = (3, "image", 4, "image")


def _trained_on_a_picture(bench: Bench) -> Found:
    return _loss(bench, bench.prompt(_ENDS_IN_A_PICTURE))


def _trained_by_mask(layout: tuple[Any, ...] | None = None) -> Callable[[Bench], Found]:
    def run(bench: Bench) -> Found:
        assert bench.session is not None
        inputs = bench.one() if layout is None else bench.prompt(layout)
        trace, model = bench.session.trace, bench.model
        model.zero_grad()
        with bench.paused():
            logits = _learning_logits(model, inputs, trace, renumber=bench.kind == "renumber")
        labels = _labels(inputs["input_ids"])[0]
        loss = torch.nn.functional.cross_entropy(logits[:-1].float(), labels[1:], ignore_index=-100)
        loss.backward()
        return [loss.detach(), *_gradients(model)]

    return run


def _learning_logits(
    model: Any, inputs: dict[str, Any], trace: Any, new: Tensor = _NOTHING_SAID, **options: Any
) -> Tensor:
    """The reference with a gradient through the vision side as well."""
    seen: list[Tensor] = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    return reference_logits(model, inputs, new, trace, embedded=seen[0][0], **options)


def _checkpointing(family: Family, kept: dict[str, Any]) -> Any:
    model = _learning(family, kept)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # its newer name
    return model


def _checkpointed(bench: Bench) -> Found:
    return _loss(bench, bench.one())


def _not_checkpointed(bench: Bench) -> Found:
    model = bench.model
    getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
    return _loss(bench, bench.one())


# ---------------------------------------------------------------------- states and maps of every layer


def _recording(family: Family, kept: dict[str, Any]) -> Any:
    model = family.model(attention="eager")
    _outputs_of(model, **family.prompt(model, family.row))  # transformers hooks a model that is first asked for them
    return model


def _outputs_of(model: Any, **inputs: Any) -> Any:
    asked = dict.fromkeys(("return_dict_in_generate", "output_hidden_states", "output_attentions"), True)
    return model.generate(**inputs, **asked, max_new_tokens=NEW, do_sample=False)


def _outputs(bench: Bench) -> Found:
    """Of every layer, at the prompt's text and at new tokens: hidden states [T, D], and weights [H, T, columns]."""
    inputs = bench.one()
    out, text = _outputs_of(bench.model, **inputs), _text_columns(bench, inputs)[0]
    start, found = len(text), [out.sequences[:, len(text) :]]
    for step, (states, maps) in enumerate(zip(out.hidden_states, out.attentions, strict=True)):
        rows = text if step == 0 else slice(None)
        assert {tuple(one.shape[2:]) for one in maps} == {(start if step == 0 else 1, start + step)}
        assert len(maps) == len(states) - 1
        found += [one[0, rows] for one in states[1:]] + [one[0, :, rows] for one in maps]
    return found


def _outputs_by_mask(bench: Bench) -> Found:
    assert bench.session is not None
    inputs, tokens, layout = bench.one(), bench.found[0], bench.session.layout
    states, maps, text = list[Tensor](), list[Tensor](), _text_columns(bench, inputs)[0]
    handles = [
        *(layer.register_forward_hook(lambda *args: states.append(args[2][0])) for layer in layout.layers[:-1]),
        *(one.register_forward_hook(lambda *args: maps.append(args[2][1][0])) for one in layout.attentions),
        layout.language_model.register_forward_hook(lambda *args: states.append(args[2].last_hidden_state[0])),
    ]
    bench.masked(inputs, tokens[0, :-1])
    for handle in handles:
        handle.remove()
    length = len(text)
    found = [tokens, *(one[:length][text] for one in states), *(one[:, :length][:, text, :length] for one in maps)]
    for end in range(length + 1, length + NEW):
        found += [one[end - 1 : end] for one in states] + [one[:, end - 1 : end, :end] for one in maps]
    return found


# ---------------------------------------------------------------------- models in other dress


def _with_lora(family: Family, kept: dict[str, Any]) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_dropout=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, at what peft still calls
        model = peft.get_peft_model(copy.deepcopy(family.model()), config)
        kept["merged"] = copy.deepcopy(model).eval().merge_and_unload()
    return model.eval()


def _merged_lora(bench: Bench) -> Found:
    with bench.other(bench.kept["merged"]) as model:
        return bench.generate(bench.one(), model=model)


def _offloaded(family: Family, kept: dict[str, Any]) -> Any:
    accelerate = pytest.importorskip("accelerate")
    kept["plain"] = family.model()
    model = copy.deepcopy(family.model())
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def _in_place(bench: Bench) -> Found:
    with bench.other(bench.kept["plain"]) as model:
        return bench.generate(bench.one(), model=model)


def _in(dtype: torch.dtype) -> Callable[[Family, dict[str, Any]], Any]:
    return lambda family, kept: copy.deepcopy(family.model()).to(dtype)


def _exactly(bench: Bench) -> Found:
    """By the reference in single precision, with the same weights and the same kept sets."""
    assert bench.session is not None
    inputs, tokens, trace = bench.one(), bench.found[0], bench.session.trace
    inputs["pixel_values"] = inputs["pixel_values"].float()
    with bench.paused():
        model = copy.deepcopy(bench.model).float()
    logits = reference_logits(model, inputs, tokens[0, :-1], trace, renumber=bench.kind == "renumber")
    return [tokens, logits[-NEW:].unsqueeze(0)]


def _attending(name: str) -> Callable[[Family, dict[str, Any]], Any]:
    return lambda family, kept: family.model(attention=name)


def _flash(family: Family, kept: dict[str, Any]) -> Any:
    if not torch.cuda.is_available():
        pytest.skip("flash attention needs a GPU")
    pytest.importorskip("flash_attn")
    return family.build(attention="flash_attention_2").to("cuda", torch.bfloat16)


def _compiled(family: Family, kept: dict[str, Any]) -> Any:
    return torch.compile(family.build(layers=3), backend="eager")


def _call_compiled(bench: Bench) -> Found:
    """Compiled only where a strategy is on: the backend runs what it captured, so plain calls give the same bits."""
    model = unwrapped(bench.model)[0] if bench.session is None else bench.model
    with torch.no_grad():
        return [model(**bench.one(), use_cache=False).logits]


def _pipeline(bench: Bench) -> Found:
    from transformers import pipeline

    from tests.generate.processing import picture, processor_for

    processor = processor_for(bench.model)
    pipe = pipeline("image-text-to-text", model=bench.model, processor=processor)
    out = pipe(text="<image> w5 w6 w7", images=picture(), max_new_tokens=NEW, return_full_text=False, do_sample=False)
    return [torch.tensor([int(word[1:]) for word in out[0]["generated_text"].split()])]


def _without_pipeline(bench: Bench) -> Found:
    from tests.generate.processing import picture, processor_for

    inputs = processor_for(bench.model)(text="<image> w5 w6 w7", images=picture(), return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "pixel_values")}
    return [bench.generate(inputs)[0][0]]


# ---------------------------------------------------------------------- contexts


def _together(bench: Bench) -> Found:
    """Two models, one in each thread, in lock step at their first forwards."""
    models = [bench.family.build(seed=seed) for seed in (0, 1)]
    gate, found, failed = threading.Barrier(2, timeout=60), [torch.zeros(0), torch.zeros(0)], list[BaseException]()

    def work(index: int) -> None:
        try:
            with bench.other(models[index]) as model:
                for _ in range(3):
                    gate.wait()
                    found[index] = bench.generate(bench.one(), model=model)[1]
        except BaseException as error:
            failed.append(error)
            gate.abort()

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found


def _apart(bench: Bench) -> Found:
    found: Found = []
    for seed in (0, 1):
        with bench.other(bench.family.build(seed=seed)) as model:
            found.append(bench.generate(bench.one(), model=model)[1])
    return found


def _nested(bench: Bench) -> Found:
    with trim(bench.model, bench.spec):
        return bench.generate(bench.one())


def _again(bench: Bench) -> Found:
    if bench.session is not None:
        bench.generate(bench.one())
        with bench.paused():
            pass
    return bench.generate(bench.one())


def _interrupted(bench: Bench) -> Found:
    layer = bench.session.layout.layers[3] if bench.session is not None else None
    if layer is not None:
        handle = layer.mlp.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            bench.generate(bench.one())
        handle.remove()
    return bench.generate(bench.one())


_PLAIN = _greedy()
_CACHE = dict.fromkeys(PRUNED, "plain DynamicCache")
_NO_ASSISTANT = {"temporal": "without a temporal strategy"}
_KEEP_DEFAULT = "leave the cache to `generate`"

FEATURES: tuple[Feature, ...] = (
    Feature("greedy decoding", _PLAIN, _by_mask),
    Feature("several images in one prompt", _several, _several_by_mask),
    Feature(
        "rows with other images, image sizes and texts, or without an image, padded on the left", _batch, _rows_alone
    ),
    Feature(
        "an image and a video in one prompt",
        lambda bench: bench.generate(_mixed(bench)),
        _mixed_by_mask,
        serves=lambda family: family.video_id not in (None, family.image_id),  # alike: the model takes one or the other
    ),
    Feature("the same rows padded on the right, in a forward", _right_padded, _unpadded),
    Feature(
        "the same rows padded on the right, in `generate`",
        lambda bench: bench.generate(bench.prompt(*bench.family.ragged, padding="right")),
        refused=dict.fromkeys(PRUNED, "padded on the left"),
        instead="pad on the left",
        serves=_llava,
    ),
    Feature("beam search, `num_return_sequences`", _beams, _beams_said, expands=True),
    Feature("sampling with `num_return_sequences`", _sampled, _sampled_said, expands=True),
    Feature("a streamer", _streamed, lambda bench: [_PLAIN(bench)[0][0]]),
    Feature(
        "`assistant_model`",
        _assistant,
        _greedy(new=8),
        refused=_NO_ASSISTANT,
        instead="use the spatial part alone, or no assistant",
        serves=_llava,
    ),
    Feature(
        "`prompt_lookup_num_tokens`",
        _looked_up,
        _not_looked_up,
        refused=_NO_ASSISTANT,
        instead="use the spatial part alone, or no prompt lookup",
    ),
    Feature(
        "`prefill_chunk_size` below the prompt's length",
        _greedy(prefill_chunk_size=10),
        refused=dict.fromkeys(PRUNED, "prefill_chunk_size"),
        instead="drop it: pruning lowers the memory of later layers itself",
        recent=True,
    ),
    Feature(
        "`prefill_chunk_size` of at least the prompt's length", _greedy(prefill_chunk_size=4096), _by_mask, recent=True
    ),
    Feature(
        '`cache_implementation="static"`',
        _greedy(cache_implementation="static"),
        refused=_CACHE,
        instead=_KEEP_DEFAULT,
    ),
    Feature("a `StaticCache` of the caller's", _static_object, refused=_CACHE, instead="pass a `DynamicCache`"),
    Feature(
        '`cache_implementation="offloaded"`',
        _needs_cuda(cache_implementation="offloaded"),
        refused=_CACHE,
        instead=_KEEP_DEFAULT,
        unproven=("none",),
    ),
    Feature(
        '`cache_implementation="quantized"`', _quantized, refused=_CACHE, instead=_KEEP_DEFAULT, unproven=("none",)
    ),
    Feature("a `DynamicCache` of the caller's", _own_cache, _by_mask),
    Feature(
        "`use_cache=False`",
        _without_cache,
        _with_cache,
        refused={"temporal": "have a KV cache"},
        instead="let the model keep a cache",
    ),
    Feature("one picture, many questions over copies of its cache", _PLAIN, elsewhere="tests/engine/test_copies.py"),
    Feature("a prompt of text alone, continued; `guidance_scale`", _PLAIN, elsewhere="tests/engine/test_copies.py"),
    Feature("a returned cache continued with text", _second_turn, _turn_at_once, first_only=("both",)),
    Feature(
        "a cache that was filled under `torch.inference_mode()`, continued outside",
        _turn_outside,
        _second_turn,
        serves=_llava,
    ),
    Feature(
        "a returned cache continued under a mask that hides some of what was said",
        _hidden_turn,
        _hidden_turn_by_mask,
        leaves_out=("merging",),
        serves=_llava,
    ),
    Feature(
        "a returned cache continued with another image",
        _picture_later,
        refused=dict.fromkeys(PRUNED, "bring text only"),
        instead="start a new prompt with all images and all that was said",
    ),
    Feature("`model(**inputs)` with and without cache and mask", _forward, _forward_by_mask, leaves_out=("merging",)),
    Feature(
        "`labels`, and the gradient", _trained, _trained_by_mask(), _learning, leaves_out=("merging",), serves=_llava
    ),
    Feature(
        "a gradient through a prompt and cached steps",
        _trained_by_steps,
        _trained_by_steps_by_mask,
        _learning,
        leaves_out=("merging",),
        serves=_llava,
    ),
    Feature(
        "`labels` for a prompt that ends in an image",
        _trained_on_a_picture,
        _trained_by_mask(_ENDS_IN_A_PICTURE),
        _learning,
        leaves_out=("merging",),
        serves=_llava,
    ),
    Feature(
        "a label right behind an image",
        _labelled_behind_a_picture,
        refused={"spatial": "right behind visual tokens"},
        instead="set the prompt's labels to -100",
        leaves_out=("both",),
        serves=_llava,
    ),
    Feature(
        "samples packed into one row (`position_ids` that begin anew, no mask, no cache)",
        _packed,
        refused={"spatial": "hold one sample", "temporal": "have a KV cache"},
        instead="give each sample a row of its own",
        serves=_llava,
    ),
    Feature(
        "`output_hidden_states` and `output_attentions`, read by column",
        _outputs,
        _outputs_by_mask,
        _recording,
        leaves_out=("merging",),
        serves=lambda family: family.name in ("llava", "qwen3-vl"),
    ),
    Feature("gradient checkpointing", _checkpointed, _not_checkpointed, _checkpointing, serves=_llava, recent=True),
    Feature("a model with LoRA (`PeftModel`)", _PLAIN, _merged_lora, _with_lora, serves=_llava),
    Feature(
        "weights moved by accelerate's hooks (`device_map`, offload)",
        _PLAIN,
        _in_place,
        _offloaded,
        serves=_offloads,
        recent=True,
    ),
    Feature(
        "decoder layers on several devices (`device_map`)",
        _PLAIN,
        elsewhere="tests/engine/test_devices.py",
    ),
    Feature(
        'tensor parallel (`tp_plan="auto"`)',
        _PLAIN,
        elsewhere="tests/generate/test_tensor_parallel.py",
    ),
    Feature("bfloat16", _PLAIN, _exactly, _in(torch.bfloat16), leaves_out=("merging",), serves=_llava, tolerance=0.1),
    Feature("float16", _PLAIN, _exactly, _in(torch.float16), leaves_out=("merging",), serves=_llava, tolerance=0.03),
    Feature("`sdpa` attention", _PLAIN, _by_mask, _attending("sdpa")),
    Feature("`eager` attention", _PLAIN, _by_mask, _attending("eager"), leaves_out=("merging",)),
    Feature(
        "`flex_attention`",
        _PLAIN,
        _by_mask,
        _attending("flex_attention"),
        serves=_llava,
        unfused=not torch.cuda.is_available(),
        # Compiled for a CPU by torch 2.13, its kernel crashed on a shortened sequence and took the process along.
        leaves_out=() if torch.cuda.is_available() else KINDS[1:],
        unproven=PRUNED,
    ),
    Feature(
        "`flash_attention_2` (needs a GPU)",
        _PLAIN,
        _by_mask,
        _flash,
        serves=_llava,
        tolerance=0.1,
        unproven=("none", *PRUNED),
    ),
    Feature(
        "a forward compiled by `torch.compile`",
        _call_compiled,
        build=_compiled,
        refused=dict.fromkeys(PRUNED, "not through torch.compile"),
        instead="trim and call the model that was not compiled",
        serves=_llava,
        outside=True,
    ),
    Feature("the `image-text-to-text` pipeline", _pipeline, _without_pipeline, serves=_llava),
    Feature("two threads, a model each", _together, _apart, serves=_llava),
    Feature("two threads that encode pictures for one model", _PLAIN, elsewhere="tests/engine/test_threads.py"),
    Feature(
        "a context inside a context of the same model",
        _nested,
        refused=dict.fromkeys(("none", *PRUNED), "one strategy at a time"),
        instead="leave the first, or compose the strategies",
        serves=_llava,
    ),
    Feature("one context after another", _again, _by_mask),
    Feature("an exception inside, then the next prompt", _interrupted, _by_mask, serves=_llava),
)


def table() -> str:
    """The verdicts as Markdown, for the documentation."""
    lines = ["| asked for | `none` | spatial | temporal | instead |", "|---|---|---|---|---|"]
    for feature in FEATURES:
        verdicts = " | ".join(feature.verdict(group) for group in ("none", *PRUNED))
        lines.append(f"| {feature.name} | {verdicts} | {feature.instead or '–'} |")
    return "\n".join(lines)


def expects(feature: Feature, kind: str) -> str | None:
    """What the error says where a kind of strategy is refused the feature; None where it is right."""
    return feature.refused.get(group_of(kind))
