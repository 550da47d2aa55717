"""``fastervlm`` against loops written from the formula."""

from __future__ import annotations

import pytest
import torch

from tests.families import FAMILIES
from tests.models import prompt, tiny_llava
from tests.strategies.sites_factory import attention, layer_site, model_shape
from tokentrim.contracts.selection import top_selection
from tokentrim.contracts.sites import Need
from tokentrim.counting.forecast import plan
from tokentrim.counting.published import PRESETS
from tokentrim.counting.schedule import Schedule
from tokentrim.errors import UnsupportedError
from tokentrim.session import adapter_of, trim
from tokentrim_strategies.fastervlm import FasterVLM


def test_score_is_the_mean_over_heads():
    rows = attention(2, 1, 3, 7)
    score = FasterVLM().score(layer_site((7, 7), {Need.VISION_ROWS: rows}))
    for sample in range(2):
        for token in range(7):
            expected = sum(rows[sample, 0, head, token].item() for head in range(3)) / 3
            assert score[sample, token].item() == pytest.approx(expected, abs=1e-15)


def test_keeps_the_most_attended():
    rows = torch.tensor([[[[0.1, 0.3, 0.0, 0.2], [0.1, 0.1, 0.5, 0.2]]]])  # means 0.1, 0.2, 0.25, 0.2
    score = FasterVLM().score(layer_site((4,), {Need.VISION_ROWS: rows}))
    assert top_selection(score, (2,), (4,)).kept.tolist() == [[1, 2]]


@pytest.mark.parametrize("token", [0, 3, 6])
def test_more_attention_never_drops_a_token(token: int):
    rows = attention(1, 1, 2, 7)
    for count in range(1, 8):
        before = top_selection(FasterVLM().score(layer_site((7,), {Need.VISION_ROWS: rows})), (count,), (7,))
        more = rows.clone()
        more[0, 0, 1, token] += 1
        after = top_selection(FasterVLM().score(layer_site((7,), {Need.VISION_ROWS: more})), (count,), (7,))
        assert token in after.kept[0].tolist()
        assert len(set(before.kept[0].tolist()) - set(after.kept[0].tolist())) <= 1


@pytest.mark.parametrize(("dropped", "kept"), [(0.25, 432), (0.5, 288), (0.75, 144), (0.9, 57), (0.95, 28)])
def test_published_ratios(dropped: float, kept: int):
    """The paper's 58 and 29 are rounded up; ours are floors, and keep_count says the paper's exactly."""
    assert FasterVLM(keep_ratio=round(1 - dropped, 2)).schedule(model_shape(), 576) == Schedule.of({0: kept})
    assert FasterVLM(keep_count=58).schedule(model_shape(), 576) == Schedule.of({0: 58})


@pytest.mark.parametrize("wanted", [192, 128, 64])
def test_budgets_are_met_exactly(wanted: int):
    shape = PRESETS["llava-1.5-7b"]
    strategy, realised = FasterVLM().at_budget(shape, 576, layer_mean_ratio=wanted / 576)
    assert realised == wanted / 576
    assert set(plan(strategy, shape, 576).usage.layer_tokens) == {wanted}


def test_which_block():
    assert FasterVLM().wants_vision_blocks(-1) == (-1,)
    assert FasterVLM(block=0).wants_vision_blocks(-1) == (0,)
    with (
        pytest.raises(UnsupportedError, match="exist among the tower's 3"),
        trim(tiny_llava(side=4), FasterVLM(block=3)),
    ):
        pass


@pytest.mark.parametrize(("layer", "block"), [(-2, -2), (-1, -1), (2, -2), ([-3, 3], -1), (0, -4)])
def test_the_block_of_the_features_is_the_model_s(layer: int | list[int], block: int):
    """Of three blocks: hidden state 3 is what the last puts out, and 0 what enters the first, which none does."""
    model = tiny_llava(side=4)
    model.config.vision_feature_layer = layer
    assert adapter_of(model).locate(model).features_block == block


@pytest.mark.parametrize(("name", "block"), [("llava-onevision", -1), ("llava-next", -2)])
def test_by_default_it_reads_the_features_block(name: str, block: int):
    family = FAMILIES[name]
    model = family.model()
    inputs = family.prompt(model, *family.ragged[:1])
    kept: list[list[int]] = []
    for chosen in (None, block, -3 - block):
        with trim(model, FasterVLM(keep_count=5, block=chosen)) as session, torch.no_grad():
            model(**inputs)
        kept.append(session.trace.kept(0).tolist())
    assert kept[0] == kept[1] != kept[2]


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_the_tower_s_own_rows(tower: str):
    """With [CLS] its row, without it the mean over all patches; of the eager map, block -2."""
    model = tiny_llava(tower=tower, side=4, attention="eager")
    inputs = prompt(model, [3, "image", 5])
    with torch.no_grad():
        maps = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions[-2][0].mean(0)
    expected = maps[0, 1:] if tower == "clip" else maps.mean(0)
    with trim(model, FasterVLM(keep_count=5)) as session, torch.no_grad():
        model(**inputs)
    assert session.trace.kept(0).tolist() == sorted(expected.argsort(descending=True)[:5].tolist())
