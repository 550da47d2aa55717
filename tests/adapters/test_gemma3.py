"""Gemma 3: pictures whose tokens see each other, two kinds of positions, sliding windows, pan-and-scan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

from tests import models
from tests.engine.cases import ATTENDING, FIRST, SPECS, dealt, deviation, generate
from tests.engine.probes import Probe
from tests.gemma import BEGIN, END, MERGE, PIXELS, SIDE, WINDOW, Gemma3
from tests.masked import masked_logits
from tests.oracle import TOLERANCE, check, check_beams
from tokentrim.config.specs import strategy_from
from tokentrim.errors import AdapterError, UnsupportedError
from tokentrim.loading import prompt_inputs
from tokentrim.plugins.loader import registry
from tokentrim.selftest.checks import plain_masks, windows
from tokentrim.selftest.running import subject_of
from tokentrim.selftest.verdict import Failed
from tokentrim.session import adapter_of, trim

FAMILY = Gemma3()
HALF = {"name": "random", "keep_ratio": 0.5}


@pytest.mark.parametrize(("strategy", "attention"), dealt(FIRST, ("sdpa", "eager")))
def test_dropping_in_a_ragged_batch_is_masking_each_row(strategy: str, attention: str) -> None:
    check(FAMILY, FAMILY.model(attention=attention), SPECS[strategy])


@pytest.mark.parametrize("boundary", [0, 1, 3])
def test_renumbered_positions(boundary: int) -> None:
    model = FAMILY.model()
    inputs = FAMILY.prompt(model, (3, "image", 4, "image", 7))
    with trim(model, {**HALF, "boundary": boundary, "positions": "renumber"}) as session:
        ids, logits = generate(model, inputs, 5)
        trace = session.trace
    visual = FAMILY.visual(model, inputs)[0]
    expected = masked_logits(model, inputs, ids[0, :-1], trace, visual=visual, renumber=True)
    assert deviation(logits[0], expected[len(visual) - 1 :]) < TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_keeping_everything_changes_no_bit(attention: str) -> None:
    model = FAMILY.model(attention=attention)
    inputs = FAMILY.prompt(model, *FAMILY.ragged)
    ids, logits = generate(model, inputs, 4)
    for spec in ("none", {"name": "random", "keep_ratio": 1.0}, {"name": "fastv", "keep_ratio": 1.0}):
        with trim(model, spec) as session:
            found_ids, found = generate(model, inputs, 4)
            assert session.trace.n_visual == (16, 0, 32)
            assert session._latest.n_text == (10, 9, 17)  # padding is none
        assert torch.equal(found_ids, ids)
        assert torch.equal(found, logits)


@pytest.mark.parametrize("spec", [{**HALF, "boundary": 0}, SPECS["st3"]])
def test_beams_of_a_batch_are_the_beams_of_each_row(spec: Any) -> None:
    check_beams(FAMILY, spec, FAMILY.ragged)


@pytest.mark.parametrize("boundary", [0, 2])
def test_a_second_turn_sees_what_the_first_left(boundary: int) -> None:
    """Fed at once or in two chunks, it answers like the untouched model under the masks of the trace."""
    model = FAMILY.model()
    inputs = FAMILY.prompt(model, FAMILY.row)
    turn = torch.tensor([[5, 6, 7, 8]])
    found: list[Tensor] = []
    for chunks in ((4,), (1, 3)):
        with trim(model, {**HALF, "boundary": boundary}) as session, torch.no_grad():
            out = again = model(**inputs)
            for chunk in turn.split(list(chunks), dim=1):
                again = model(input_ids=chunk, past_key_values=out.past_key_values)
            found.append(again.logits[0, -1])
            trace = session.trace
    trace.steps = turn.shape[1]  # one for each new token, as the reference counts
    visual = FAMILY.visual(model, inputs)[0]
    expected = masked_logits(model, inputs, turn[0], trace, visual=visual)[-1]
    assert all(deviation(logits[None], expected[None]) < TOLERANCE for logits in found)


def test_generate_continues_a_conversation() -> None:
    model = FAMILY.model()
    inputs = FAMILY.prompt(model, FAMILY.row)
    with trim(model, {**HALF, "boundary": 2}):
        first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        whole = torch.cat([first.sequences, torch.tensor([[5, 6, 7]])], dim=1)
        kinds = (whole == models.IMAGE).long()
        second = model.generate(
            input_ids=whole, token_type_ids=kinds, past_key_values=first.past_key_values, max_new_tokens=3
        )
    assert second.shape[1] == whole.shape[1] + 3


def test_the_cache_that_published_checkpoints_name_is_the_usual_one() -> None:
    model = FAMILY.build()
    inputs = FAMILY.prompt(model, FAMILY.row)
    with trim(model, SPECS["st3"]):
        ids, logits = generate(model, inputs, 4)
        model.generation_config.cache_implementation = "hybrid"
        found_ids, found = generate(model, inputs, 4)
    assert torch.equal(found_ids, ids)
    assert torch.equal(found, logits)


def test_columns_of_attention_are_those_of_eager_attention() -> None:
    """Tokens of a picture look at tokens behind them, too."""
    model, maps = FAMILY.model(attention="eager"), list[Tensor]()
    inputs = FAMILY.prompt(model, (3, "image", 4, "image", 7))
    layer = model.model.language_model.layers[1].self_attn
    handle = layer.register_forward_hook(lambda module, args, output: maps.append(output[1]))
    probe = Probe(at=(2,))
    with trim(model, probe), torch.no_grad():
        model(**inputs)
    handle.remove()
    visual = FAMILY.visual(model, inputs)[0]
    first = int(visual.nonzero()[0])
    assert bool((maps[0][0, :, first, first + 1 : first + SIDE**2] > 0).all())
    expected = maps[0][0].mean(1)[:, visual]
    torch.testing.assert_close(probe._seen[2]["column_mean"][0], expected, atol=1e-6, rtol=1e-4)


def test_without_token_types_the_model_sees_backwards_alone() -> None:
    model = FAMILY.model()
    inputs = FAMILY.prompt(model, FAMILY.row)
    with trim(model, {**HALF, "boundary": 2}):
        mutual = generate(model, inputs, 2)[1]
    del inputs["token_type_ids"]
    with trim(model, {**HALF, "boundary": 2}) as session:
        ids, logits = generate(model, inputs, 2)
        trace = session.trace
    visual = FAMILY.visual(model, inputs)[0]
    expected = masked_logits(model, inputs, ids[0, :-1], trace, visual=visual)[len(visual) - 1 :]
    assert deviation(logits[0], expected) < TOLERANCE
    assert deviation(logits[0], mutual[0]) > 1e-3


def test_the_grid_names_picture_row_and_column() -> None:
    model = FAMILY.model()
    with trim(model, "none") as session, torch.no_grad():
        model(**FAMILY.prompt(model, *FAMILY.ragged))
        grid = session.grid
    square = [(row, col) for row in range(SIDE) for col in range(SIDE)]
    assert list(zip(grid.row[2].tolist(), grid.col[2].tolist(), strict=True)) == square * 2
    assert grid.image[2].tolist() == [0] * SIDE**2 + [1] * SIDE**2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_site_shows_the_towers_attention_where_the_features_are(attention: str) -> None:
    model = FAMILY.model(attention=attention)
    inputs = FAMILY.prompt(model, FAMILY.row)
    probe = Probe(at=(0,), blocks=(-1, 0))
    with trim(model, probe), torch.no_grad():
        model(**inputs)
        tower = FAMILY.model(attention="eager").model.vision_tower
        maps = tower(inputs["pixel_values"], output_attentions=True).attentions
    for index, block in enumerate((-1, 0)):
        square = maps[block][0].mean(1).unflatten(-1, (SIDE * MERGE, SIDE * MERGE))
        expected = torch.nn.functional.avg_pool2d(square, MERGE).flatten(1)
        torch.testing.assert_close(probe._seen[0]["vision_rows"][0, index], expected, atol=1e-6, rtol=1e-4)


# ---------------------------------------------------------------------- windows shorter than the prompt

NARROW = 11
UNAWARE = ("yopo", "sgl")  # of windows
BEYOND = [name for name in ATTENDING if strategy_from(SPECS[name]).strategy.name not in UNAWARE]


@pytest.mark.parametrize(("strategy", "attention"), dealt(BEYOND, ("eager", "sdpa")))
def test_dropping_is_masking_where_windows_are_short(strategy: str, attention: str) -> None:
    """A window reaches as far back as in the untouched model, whatever has gone from it."""
    check(FAMILY, FAMILY.model(attention=attention, sliding_window=NARROW), SPECS[strategy])


@pytest.mark.parametrize("window", [NARROW, 28])
def test_the_reference_is_the_untouched_model_where_windows_are_short(window: int) -> None:
    """And keeping everything is too; the longer window is reached by a decode step alone."""
    model = FAMILY.model(sliding_window=window)
    inputs = FAMILY.prompt(model, FAMILY.row)
    ids, logits = generate(model, inputs, 5)
    visual = FAMILY.visual(model, inputs)[0]
    with trim(model, {"name": "random", "keep_ratio": 1.0}) as session:
        _, found = generate(model, inputs, 5)
        trace = session.trace
    expected = masked_logits(model, inputs, ids[0, :-1], trace, visual=visual)[len(visual) - 1 :]
    assert deviation(expected, logits[0]) < TOLERANCE
    assert deviation(found[0], logits[0]) < TOLERANCE
    wide = FAMILY.model()
    _, open_logits = generate(wide, inputs, 5)
    assert deviation(open_logits[0, -1:], logits[0, -1:]) > 1e-3


def test_beams_where_windows_are_short() -> None:
    class Narrow(Gemma3):
        def build(self, **options: Any) -> Any:
            return super().build(**{"sliding_window": NARROW, **options})

    check_beams(Narrow(), SPECS["st3"], FAMILY.ragged)


@pytest.mark.parametrize("at", [1, 3])
def test_rows_of_attention_where_windows_are_short(at: int) -> None:
    """Of the layer before the boundary, and of the one behind it."""
    model, maps = FAMILY.model(attention="eager", sliding_window=NARROW), dict[int, Tensor]()
    inputs = FAMILY.prompt(model, (3, "image", 4, "image", 7))
    plain = FAMILY.build(attention="eager", sliding_window=NARROW)
    for number in (at - 1, at):
        plain.model.language_model.layers[number].self_attn.register_forward_hook(
            lambda module, args, output, number=number: maps.update({number: output[1][0]})
        )
    probe = Probe(at=(at,))
    with trim(model, probe), torch.no_grad():
        model(**inputs)
        plain(**inputs)
    visual, text = (inputs["input_ids"][0] == models.IMAGE, inputs["input_ids"][0] != models.IMAGE)
    before, behind, seen = maps[at - 1][:, :, visual], maps[at][:, :, visual], probe._seen[at]
    for name, expected in {
        "last_row": before[:, -1],
        "text_rows": before[:, text],
        "window_rows": before[:, -3:],
        "column_mean": before.mean(1),
        "next_row": behind[:, -1],
    }.items():
        found = seen[name][0] if isinstance(seen[name], tuple) else seen[name]  # with those of its rows that are real
        torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    assert bool((before[:, -1, 0] == 0).all()) == (at == 1)  # the first picture is out of sight, in narrow layers


def test_a_second_turn_where_windows_are_short() -> None:
    model = FAMILY.model(sliding_window=NARROW)
    inputs = FAMILY.prompt(model, FAMILY.row)
    turn = torch.tensor([[5, 6, 7, 8]])
    found: list[Tensor] = []
    for chunks in ((4,), (1, 3)):
        with trim(model, {**HALF, "boundary": 2}) as session, torch.no_grad():
            out = again = model(**inputs)
            for chunk in turn.split(list(chunks), dim=1):
                again = model(input_ids=chunk, past_key_values=out.past_key_values)
            found.append(again.logits[0, -1])
            trace = session.trace
    trace.steps = turn.shape[1]
    expected = masked_logits(model, inputs, turn[0], trace, visual=FAMILY.visual(model, inputs)[0])[-1]
    assert all(deviation(logits[None], expected[None]) < TOLERANCE for logits in found)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({**HALF, "positions": "renumber"}, "renumbered positions"),
        (SPECS["yopo"], "neighbourhoods of edited attention"),
    ],
)
def test_what_knows_no_window_is_refused_beyond_one(spec: Any, reason: str) -> None:
    model = FAMILY.model()
    long = FAMILY.prompt(model, (3, "image", WINDOW))
    with trim(model, spec), pytest.raises(UnsupportedError, match=rf"the window, {WINDOW} tokens long \({reason}"):
        generate(model, long, 1)
    short = FAMILY.prompt(model, (3, "image", WINDOW - 22))  # and two marks
    with trim(model, spec), pytest.raises(UnsupportedError, match=f"got {WINDOW + 1}"):
        generate(model, short, 3)


# ---------------------------------------------------------------------- refusals, by name


def test_a_guide_reads_what_its_window_holds() -> None:
    model = FAMILY.model(sliding_window=NARROW)
    with (
        trim(model, SPECS["sgl"]),
        pytest.raises(UnsupportedError, match=f"of the guide 'self' must be at most .* {NARROW}"),
    ):
        generate(model, FAMILY.prompt(model, FAMILY.row), 2)


def test_a_decoder_that_reads_text_both_ways_is_refused() -> None:
    model = FAMILY.build()
    model.config.text_config.use_bidirectional_attention = True
    with pytest.raises(AdapterError, match="use_bidirectional_attention of a Gemma 3 decoder must be off"):
        trim(model, "none")


# ---------------------------------------------------------------------- what the self-test makes of a wrong adapter

Right: Any = registry("adapter").get("gemma3")


class Backwards(Right):
    def mutual(self, layout: Any, arguments: Any) -> None:
        return None


class OneTable(Right):
    def locate(self, model: Any) -> Any:
        return replace(super().locate(model), rotary_kinds=("full_attention",) * len(super().locate(model).layers))


class Wider(Right):
    def locate(self, model: Any) -> Any:
        layout = super().locate(model)
        return replace(layout, windows=tuple(window and window + 1 for window in layout.windows))


@pytest.mark.parametrize(
    ("adapter", "check", "said"),
    [(Backwards, plain_masks, "bidirectional attention"), (OneTable, plain_masks, "more than one kind"),
     (Wider, windows, "dropping is not masking")],
)  # fmt: skip
def test_what_an_adapter_says_wrong_is_found(adapter: Any, check: Any, said: str) -> None:
    found = subject_of(Gemma3ForConditionalGeneration, Gemma3Config(), Right(), None, [])
    assert found is not None
    assert check(found)
    wrong = replace(found, adapter=adapter(), layout=adapter().locate(found.model))
    with pytest.raises(Failed, match=said):
        check(wrong)


# ---------------------------------------------------------------------- sizes


def test_numbers_of_the_published_4b() -> None:
    vision = {"image_size": 896, "patch_size": 14, "hidden_size": 1152, "num_hidden_layers": 27,
              "intermediate_size": 4304, "num_attention_heads": 16}  # fmt: skip
    config = Gemma3Config(text_config={"hidden_size": 2560, "num_hidden_layers": 34}, vision_config=vision)
    shape = adapter_of(FAMILY.model()).shape(config)
    assert shape.vision is not None
    assert (shape.vision.n_visual, shape.vision.n_tokens, shape.vision.rows, shape.vision.merge) == (256, 4096, 16, 4)


@given(
    size=st.tuples(st.integers(1, 900), st.integers(1, 900)), most=st.integers(2, 5), least=st.sampled_from([64, 256])
)
@settings(deadline=None, max_examples=60)
def test_pan_and_scan_makes_the_pieces_of_its_processor(size: tuple[int, int], most: int, least: int) -> None:
    asked = {"do_pan_and_scan": True, "pan_and_scan_max_num_crops": most, "pan_and_scan_min_crop_size": least,
             "pan_and_scan_min_ratio_to_activate": 1.2}  # fmt: skip
    model = FAMILY.model()
    vision = adapter_of(model).preprocessed(adapter_of(model).shape(model.config), asked).vision
    assert vision is not None
    image = torch.zeros(3, *size, dtype=torch.uint8).numpy()
    crops = Gemma3ImageProcessorPil().pan_and_scan(image, least, most, 1.2)
    cut = vision.for_image(*size)
    assert cut.pieces == 1 + len(crops)
    assert cut.n_visual == cut.pieces * SIDE**2


def _processor() -> Any:
    """The family's own, for a model of one's own."""
    letters = {letter: 3 + number for number, letter in enumerate(" ?abcdefghijklmnopqrstuvwxyz")}
    words = {"<pad>": 0, "<bos>": 1, "<unk>": 2, **letters, "<img>": models.IMAGE, "<boi>": BEGIN, "<eoi>": END}
    known = Tokenizer(WordLevel(words, unk_token="<unk>"))
    known.pre_tokenizer = Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=known, pad_token="<pad>", bos_token="<bos>", unk_token="<unk>", padding_side="left",
        extra_special_tokens={"image_token": "<img>", "boi_token": "<boi>", "eoi_token": "<eoi>"},
    )  # fmt: skip
    return Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": PIXELS, "width": PIXELS}), tokenizer, image_seq_length=SIDE**2
    )


def test_prompts_of_the_familys_processor() -> None:
    processor, model = _processor(), FAMILY.model(sliding_window=1024)
    wide, small = (Image.new("RGB", size, "red") for size in ((900, 300), (40, 30)))
    inputs = prompt_inputs(processor, ["what ?", "and ?", "no ?"], [[wide], [small, wide], []])
    with trim(model, HALF) as session:
        generate(model, inputs, 2)
        assert session.trace.n_visual == (SIDE**2, 2 * SIDE**2, 0)
    panned = processor(text=["<boi>what ?"], images=[[wide]], return_tensors="pt", do_pan_and_scan=True)
    with trim(model, HALF) as session:
        generate(model, panned, 2)
        assert session.trace.n_visual == (4 * SIDE**2,)
        assert session.grid.image.unique().tolist() == [0, 1, 2, 3]  # the whole, and three crops


def test_without_pan_and_scan_every_size_is_one_piece() -> None:
    model = FAMILY.model()
    vision = adapter_of(model).preprocessed(adapter_of(model).shape(model.config), {"do_pan_and_scan": None}).vision
    assert vision is not None
    assert not vision.varies
    assert vision.for_image(100, 900).n_visual == SIDE**2
