"""SGL: the guide's attention, summed as the formula says; a guide that is the model itself makes FastV."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.cases import generate
from tests.models import IMAGE, alone, prompt, tiny_llava
from tests.strategies.sites_factory import model_shape
from tokentrim.counting.schedule import Schedule
from tokentrim.errors import DataError, UnknownNameError, UnsupportedError
from tokentrim.session import trim
from tokentrim_strategies.sgl import SGL

SIDE, N = 4, 16
_model = lru_cache(maxsize=4)(tiny_llava)
ROWS: tuple[list[int | str], ...] = ([3, "image", 5], [2, "image", 4, "image", 7], [1, "image", 2])


def _guide() -> Any:
    """Half as deep, of another backbone, and with fewer heads for keys; the tower is of the same make."""
    return _model("qwen2", layers=3, kv_heads=4, side=SIDE, seed=5, attention="eager")


def _slow_scores(guide: Any, inputs: dict[str, Tensor], rows: str, layers: list[int], steps: int) -> Tensor:
    """[N]: sums over full attention maps of the guide, its answer fed back as text."""
    with torch.no_grad():
        answer = guide.generate(**inputs, max_new_tokens=steps, do_sample=False)
        length = inputs["input_ids"].shape[1]
        maps = guide(**{**inputs, "input_ids": answer[:, :-1]}, output_attentions=True).attentions
    places = torch.nonzero(inputs["input_ids"][0] == IMAGE)[:, 0]
    total = torch.zeros(len(places))
    for layer in layers:
        for query in range(int(places[-1]) + 1, answer.shape[1] - 1):
            wanted = {
                "prompt": query < length, "generated": query >= length, "both": True, "last": query == length - 1,
            }[rows]  # fmt: skip
            if wanted:
                total += maps[layer][0, :, query, places].sum(0)
    return total


@pytest.mark.parametrize("layers", [None, (1,), (0, -1)])
@pytest.mark.parametrize("rows", ["both", "prompt", "generated", "last"])
def test_golden(rows: str, layers: tuple[int, ...] | None) -> None:
    model, guide = _model(side=SIDE), _guide()
    inputs = prompt(model, ROWS[0])
    chosen = [0, 1, 2] if layers is None else [layer % 3 for layer in layers]
    expected = _slow_scores(guide, inputs, rows, chosen, 5)
    spec = {"name": "sgl", "guide": "elsewhere", "k": 1, "keep_count": 6, "rows": rows, "layers": layers}
    with trim(model, {**spec, "guide_tokens": 5}, guide=guide) as session:
        generate(model, inputs, 2)
        found = session._latest.guided[0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert session.trace.kept(2).tolist() == sorted(expected.topk(6).indices.tolist())


@pytest.mark.parametrize("rows", ["both", "generated"])
def test_a_row_is_guided_as_if_alone_also_when_the_guide_ends_early(rows: str) -> None:
    model, guide = _model(side=SIDE), tiny_llava("qwen2", layers=3, side=SIDE, seed=5)
    inputs = prompt(model, *ROWS)
    with torch.no_grad():
        answers = guide.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    guide.generation_config.eos_token_id = int(answers[1, 2])  # one row ends in the middle of its answer
    spec = {"name": "sgl", "k": 2, "keep_ratio": 0.3, "rows": rows, "guide_tokens": 6}
    with trim(model, spec, guide=guide) as session:
        ids, _ = generate(model, inputs, 4)
        together = session._latest.guided
        for row in range(len(ROWS)):
            single = alone(inputs, row, N)
            own_ids, _ = generate(model, single, 4)
            own = session._latest.guided[0]
            torch.testing.assert_close(together[row, : len(own)], own, atol=1e-4, rtol=1e-4)
            assert ids[row].tolist() == own_ids[0].tolist()


@pytest.mark.parametrize(("layers", "k"), [(32, 12), (40, 16), (6, 2)])
def test_by_default_it_cuts_at_the_released_script_s_share_of_the_depth(layers: int, k: int):
    assert SGL().schedule(model_shape(layers), 100) == Schedule.of({k: 40})
    assert SGL(k=2).schedule(model_shape(layers), 100) == Schedule.of({2: 40})


@pytest.mark.parametrize("k", [1, 3])
def test_the_models_own_last_row_is_fastv(k: int) -> None:
    model = _model(side=SIDE)
    inputs = prompt(model, *ROWS)
    kept: list[list[int]] = []
    for spec in (
        {"name": "fastv", "k": k, "keep_ratio": 0.4},
        {"name": "sgl", "guide": "self", "k": k, "keep_ratio": 0.4, "rows": "last", "layers": [k - 1]},
    ):
        with trim(model, spec) as session:
            ids, _ = generate(model, inputs, 5)
            kept.append(
                [*ids.flatten().tolist(), *(t for row in range(3) for t in session.trace.kept(5, row).tolist())]
            )
    assert kept[0] == kept[1]


def test_beams_ask_the_guide_once_per_prompt() -> None:
    model, guide = _model(side=SIDE), _guide()
    inputs = prompt(model, *ROWS)
    with trim(model, {"name": "sgl", "k": 1, "keep_ratio": 0.4}, guide=guide) as session:
        generate(model, inputs, 1)
        plain = session._latest.guided
        model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
        beams = session._latest.guided
    assert torch.equal(beams, plain.repeat_interleave(2, dim=0))


def test_the_guides_time_is_counted_and_it_is_left_as_it_was() -> None:
    model, guide = _model(side=SIDE), _guide()
    config = guide.config.text_config._attn_implementation
    with trim(model, {"name": "sgl", "k": 1, "keep_ratio": 0.4}, guide=guide) as session:
        generate(model, prompt(model, ROWS[0]), 2)
        assert session.report().selection_seconds > 0
    assert guide.config.text_config._attn_implementation == config == "eager"


def test_a_guide_that_does_not_fit_is_refused() -> None:
    model = _model(side=SIDE)
    inputs = prompt(model, ROWS[0])
    other = _model(side=2)
    with (
        trim(model, {"name": "sgl", "k": 1, "keep_ratio": 0.4}, guide=other),
        pytest.raises(UnsupportedError, match="same prompt"),
    ):
        generate(model, inputs, 2)
    with pytest.raises((UnknownNameError, DataError)):
        trim(model, {"name": "sgl", "guide": "no-such-model"})
