"""``vtc-cls`` against loops written from the formula; with one block it is ``fastervlm``."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from tests.engine.cases import generate
from tests.models import prompt, tiny_llava
from tests.strategies.sites_factory import attention, layer_site
from tokentrim.contracts.selection import top_selection
from tokentrim.contracts.sites import Need
from tokentrim.counting.published import PRESETS
from tokentrim.errors import UnsupportedError
from tokentrim.session import trim
from tokentrim_strategies.fastervlm import FasterVLM
from tokentrim_strategies.vtc_cls import VTCCLS


def test_score_is_summed_over_blocks():
    rows = attention(2, 3, 4, 5)
    score = VTCCLS().score(layer_site((5, 5), {Need.VISION_ROWS: rows}))
    for sample in range(2):
        for token in range(5):
            expected = sum(rows[sample, block, head, token].item() / 4 for block in range(3) for head in range(4))
            assert score[sample, token].item() == pytest.approx(expected, abs=1e-14)


def test_keeps_what_several_blocks_agree_on():
    rows = torch.tensor([[[[0.5, 0.3, 0.2]], [[0.0, 0.4, 0.6]], [[0.1, 0.6, 0.3]]]])  # sums 0.6, 1.3, 1.1
    score = VTCCLS().score(layer_site((3,), {Need.VISION_ROWS: rows}))
    assert top_selection(score, (1,), (3,)).kept.tolist() == [[1]]


def test_more_attention_in_any_block_never_drops_a_token():
    rows = attention(1, 3, 2, 6)
    for token in range(6):
        for block in range(3):
            more = rows.clone()
            more[0, block, 0, token] += 3
            score = VTCCLS().score(layer_site((6,), {Need.VISION_ROWS: more}))
            assert token in top_selection(score, (1,), (6,)).kept[0].tolist()


@pytest.mark.parametrize(
    ("options", "blocks"),
    [({}, (-4, -3, -2)), ({"blocks": 1}, (-2,)), ({"blocks": 7}, tuple(range(-8, -1))), ({"last": -1}, (-3, -2, -1))],
)
def test_which_blocks(options: dict[str, int], blocks: tuple[int, ...]):
    """Of CLIP-L's 24: 20, 21 and 22 by default; from 16 on with seven."""
    assert VTCCLS(**options).wants_vision_blocks(-2) == blocks


def test_blocks_that_the_tower_does_not_have():
    with pytest.raises(UnsupportedError, match="exist among the tower's 3"), trim(tiny_llava(side=4), VTCCLS(blocks=3)):
        pass
    for wrong in ({"blocks": 0}, {"last": 0}):
        with pytest.raises(ValidationError):
            VTCCLS.model_validate(wrong)


def test_one_block_is_fastervlm():
    model = tiny_llava(side=4)
    inputs = prompt(model, [3, "image", 5], [2, "image", 9, "image", 1])
    with trim(model, VTCCLS(blocks=1, keep_count=5)) as session:
        ids, logits = generate(model, inputs, 4)
        trace = session.trace
    with trim(model, FasterVLM(keep_count=5)) as session:
        expected_ids, expected = generate(model, inputs, 4)
        assert session.trace.rows_equal(trace)
    assert torch.equal(ids, expected_ids)
    assert torch.equal(logits, expected)


def test_the_ensemble_of_the_tower_s_maps():
    model = tiny_llava(side=4, attention="eager")
    inputs = prompt(model, [3, "image", 5])
    with torch.no_grad():
        maps = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions
    expected = sum(maps[block][0, :, 0, 1:].mean(0) for block in (-3, -2))
    with trim(model, VTCCLS(blocks=2, keep_count=6)) as session, torch.no_grad():
        model(**inputs)
    assert session.trace.kept(0).tolist() == sorted(expected.argsort(descending=True)[:6].tolist())


@pytest.mark.parametrize("wanted", [256, 128, 64])
def test_budgets_are_met_exactly(wanted: int):
    _, realised = VTCCLS().at_budget(PRESETS["llava-1.5-7b"], 576, layer_mean_ratio=wanted / 576)
    assert realised == wanted / 576
