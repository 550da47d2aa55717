"""Early exit of SGL: scores as the formula says; rows that exit get the guide's answer, others the model's."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.every_family import FAMILIES
from tests.masked import masked_logits
from tests.models import IMAGE, PAD, alone, prompt, tiny_llava
from tests.strategies.test_sgl import _slow_scores
from tokentrim.engine.tokens.trace import Trace
from tokentrim.errors import DataError, StrategyError, UnsupportedError
from tokentrim.session import trim

SIDE, N, NEW, END = 4, 16, 6, 7
SHARE = 0.3
ROWS: tuple[list[int | str], ...] = ([3, "image", 5], [2, "image", 4, "image", 7], [1, "image", 2])
_model = lru_cache(maxsize=4)(tiny_llava)


def _pair() -> tuple[Any, Any]:
    """A model and a guide half as deep, both of which may end an answer."""
    model = _model(side=SIDE)
    guide = _model("qwen2", layers=3, kv_heads=4, side=SIDE, seed=5, attention="eager")
    return model, guide


def _spec(threshold: float | None, **more: Any) -> dict[str, Any]:
    return {"name": "sgl", "k": 2, "keep_ratio": 0.4, "exit_threshold": threshold, "consistency_ratio": SHARE, **more}


def _generate(model: Any, inputs: dict[str, Tensor], **more: Any) -> Tensor:
    with torch.no_grad():
        return model.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=END, **more)


def _exit_scores(inputs: dict[str, Tensor], **more: Any) -> tuple[float, ...]:
    """Scores of every row; none exceeds 1, so the model answers."""
    model, guide = _pair()
    with trim(model, _spec(1.0, **more), guide=guide) as session:
        _generate(model, inputs)
        assert session.trace.exited == ()
        return session.trace.exit_scores


def _slow_exit_score(guide: Any, inputs: dict[str, Tensor]) -> float:
    """The formula, token by token: without a cache, and with hidden tokens instead of dropped ones."""
    ids, chances = inputs["input_ids"], list[float]()
    for _ in range(NEW):
        with torch.no_grad():
            chance = guide(**{**inputs, "input_ids": ids}).logits[0, -1].softmax(-1)
        chances.append(float(chance.max()))
        ids = torch.cat([ids, chance.argmax().view(1, 1)], dim=1)
        if int(ids[0, -1]) == END:
            break
    answer = ids[0, inputs["input_ids"].shape[1] :]
    scores = _slow_scores(guide, inputs, "both", [0, 1, 2], len(answer))
    kept = scores.topk(int(SHARE * len(scores))).indices.sort().values
    trace = Trace((len(scores),), 3, NEW, [(0, kept.unsqueeze(0))])
    visual = inputs["input_ids"][0] == IMAGE
    logits = masked_logits(guide, inputs, answer[:-1], trace, visual=visual)[-len(answer) :]
    again = logits.softmax(-1)[torch.arange(len(answer)), answer]
    confidence = torch.tensor(chances).prod() ** (1 / len(chances))
    return float((confidence + again.prod()) / 2)


@pytest.mark.parametrize("row", [0, 2])
def test_golden(row: int) -> None:
    _, guide = _pair()
    inputs = prompt(_model(side=SIDE), ROWS[row])
    assert _exit_scores(inputs) == pytest.approx([_slow_exit_score(guide, inputs)], rel=1e-4)


def test_a_sure_guide_answers_and_no_layer_of_the_model_runs() -> None:
    model, guide = _pair()
    inputs = prompt(model, *ROWS)
    ran: list[int] = []
    handle = model.model.language_model.layers[0].register_forward_hook(lambda *_: ran.append(1))
    try:
        with trim(model, _spec(0.0), guide=guide) as session:
            found = _generate(model, inputs)
            trace, report = session.trace, session.report()
    finally:
        handle.remove()
    assert not ran
    assert torch.equal(found, _generate(guide, inputs))
    assert trace.exited == (0, 1, 2)
    assert all(trace.kept(layer, row).tolist() == [] for layer in range(6) for row in range(3))
    assert (report.early_exits, report.flops_ratio, report.kv_peak_bytes, report.layer_mean_tokens) == (3, 0, 0, 0)
    assert report.guide_flops_ratio > 0.5
    assert report.selection_seconds > 0
    assert "returned for 3 of 3 samples" in str(report)


def test_an_unsure_guide_only_ranks() -> None:
    model, guide = _pair()
    inputs = prompt(model, *ROWS)
    found: list[Any] = []
    for threshold in (None, 1.0):
        with trim(model, _spec(threshold, guide_tokens=NEW), guide=guide) as session:
            ids = _generate(model, inputs)
            found.append((ids.tolist(), session.trace.kept(5, 1).tolist(), session.report().early_exits))
    # What the guide attended to while it answered is cut off at its own end token in both.
    guide.generation_config.eos_token_id = END
    try:
        with trim(model, _spec(None, guide_tokens=NEW), guide=guide) as session:
            ids = _generate(model, inputs)
            found[0] = (ids.tolist(), session.trace.kept(5, 1).tolist(), session.report().early_exits)
    finally:
        guide.generation_config.eos_token_id = None
    assert found[0] == found[1]


def test_each_row_is_answered_as_if_alone() -> None:
    model, guide = _pair()
    inputs = prompt(model, *ROWS)
    singles = [alone(inputs, row, N) for row in range(3)]
    scores = [_exit_scores(single)[0] for single in singles]
    threshold = sum(sorted(scores)[1:]) / 2  # one row exits, two do not
    with trim(model, _spec(threshold), guide=guide) as session:
        together = _generate(model, inputs)
        exited, report = session.trace.exited, session.report()
        assert len(exited) == report.early_exits == 1
        assert "ran them all the same" in str(report)
        assert report.flops_ratio > 0
        length = inputs["input_ids"].shape[1]
        assert torch.equal(together[:, :length], inputs["input_ids"])
        for row, single in enumerate(singles):
            own = _generate(model, single)[0, single["input_ids"].shape[1] :]
            assert session.trace.exited == ((0,) if row in exited else ())
            mine = together[row, length:]
            assert mine[: len(own)].tolist() == own.tolist()
            assert (mine[len(own) :] == PAD).all()
            assert together.shape[1] - length <= NEW


def test_answers_that_end_are_padded_and_no_column_is_all_padding() -> None:
    model, guide = _pair()
    inputs = prompt(model, *ROWS)
    first = int(_generate(guide, inputs)[0, inputs["input_ids"].shape[1]])
    with trim(model, _spec(0.0), guide=guide), torch.no_grad():
        found = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=[first, END])
    with torch.no_grad():
        expected = guide.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=[first, END])
    assert torch.equal(found, expected)
    assert (found[0, inputs["input_ids"].shape[1] + 1 :] == PAD).all()


def test_text_and_a_plain_forward_are_the_models_affair() -> None:
    model, guide = _pair()
    text = prompt(model, [6])
    inputs = prompt(model, ROWS[0])
    plain = _generate(model, text)
    with trim(model, _spec(0.0), guide=guide) as session:
        assert torch.equal(_generate(model, text), plain)
        assert session.report().early_exits == 0
        with torch.no_grad():
            model(**inputs)
        assert session.trace.exited == ()


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"do_sample": True}, "do_sample"),
        ({"num_return_sequences": 2, "num_beams": 2}, "num_"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"streamer": object()}, "streamer"),
        ({"logits_processor": [lambda ids, scores: scores]}, "logits_processor"),
        ({"stopping_criteria": [lambda ids, scores: False]}, "stopping_criteria"),
        ({"prompt_lookup_num_tokens": 2}, "decoded plainly"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_guide_cannot_give_is_refused_by_name(asked: dict[str, Any], what: str) -> None:
    model, guide = _pair()
    inputs = prompt(model, ROWS[0])
    with trim(model, _spec(0.0), guide=guide), pytest.raises(UnsupportedError, match=what):
        model.generate(**inputs, max_new_tokens=2, **asked)
    with trim(model, _spec(None), guide=guide), torch.no_grad():
        if "streamer" not in asked and "do_sample" not in asked:
            model.generate(**inputs, max_new_tokens=2, **asked)


def test_a_guide_that_may_answer_is_another_model_with_the_same_tokenizer(tmp_path: Path) -> None:
    model, guide = _pair()
    with pytest.raises(UnsupportedError, match="another model"):
        trim(model, _spec(0.5))
    other = tiny_llava(layers=2, side=SIDE, seed=9)
    other.config.text_config.vocab_size = 120
    with pytest.raises(UnsupportedError, match="share its tokenizer"):
        trim(model, _spec(0.5), guide=other)
    words = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<image>"}]}
    for index, (one, vocabulary) in enumerate(((model, {"a": 0, "b": 1}), (guide, {"a": 1, "b": 0}))):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps({**words, "model": {"vocab": vocabulary}}))
        one.config.name_or_path = str(folder)
    try:
        with pytest.raises(UnsupportedError, match="share its tokenizer"):
            trim(model, _spec(0.5), guide=guide)
        trim(model, _spec(None), guide=guide)
        for broken in ("{", "[]", '{"model": 3}', '{"model": {"vocab": [1]}}', '{"model": {}, "added_tokens": [{}]}'):
            (tmp_path / "1" / "tokenizer.json").write_text(broken)
            with pytest.raises(DataError, match=r"tokenizer\.json must list a tokenizer's words"):
                trim(model, _spec(0.5), guide=guide)
    finally:
        model.config.name_or_path = guide.config.name_or_path = ""


def test_a_trace_remembers_who_answered_and_is_not_replayed(tmp_path: Path) -> None:
    model, guide = _pair()
    inputs = prompt(model, ROWS[0])
    with trim(model, _spec(0.0), guide=guide) as session:
        _generate(model, inputs)
        session.trace.save(tmp_path / "trace.safetensors")
        found = Trace.load(tmp_path / "trace.safetensors")
    assert found.rows_equal(session.trace)
    assert found.exited == (0,)
    assert found.exit_scores == pytest.approx(session.trace.exit_scores)
    with (
        trim(model, {"name": "replay", "file": str(tmp_path / "trace.safetensors")}),
        pytest.raises(StrategyError, match="answered by a guide"),
    ):
        _generate(model, inputs)


def test_beams_of_a_guided_model_count_its_guide_per_sample() -> None:
    model, guide = _pair()
    inputs = prompt(model, *ROWS)
    shares: list[float] = []
    for beams in (1, 2):
        with trim(model, _spec(None), guide=guide) as session:
            model.generate(**inputs, max_new_tokens=2, num_beams=beams, do_sample=False)
            shares.append(session.report().guide_flops_ratio)
    assert shares[0] == pytest.approx(shares[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_on_every_family_rows_with_pictures_exit_and_text_does_not(name: str) -> None:
    family = FAMILIES[name]
    model, guide = family.model(), family.model(seed=5)
    layouts = family.ragged[:2]
    inputs = family.prompt(model, *layouts)
    width = inputs["input_ids"].shape[1]
    with trim(model, _spec(0.0), guide=guide) as session, torch.no_grad():
        found = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        exited = session.trace.exited
        before = session.trace.exit_scores
    assert exited == tuple(torch.nonzero(family.visual(model, inputs).any(1)).flatten().tolist())
    for row in range(2):
        single = family.alone(model, layouts, row)
        with torch.no_grad():
            expected = (guide if row in exited else model).generate(**single, max_new_tokens=3, do_sample=False)
        assert found[row, width:].tolist() == expected[0, single["input_ids"].shape[1] :].tolist()
        if row in exited:
            with trim(model, _spec(0.0), guide=guide) as session, torch.no_grad():
                model.generate(**single, max_new_tokens=3, do_sample=False)
                assert session.trace.exit_scores[0] == pytest.approx(before[row], rel=1e-3)
