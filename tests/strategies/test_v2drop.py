"""``v2drop``: counts of the released code and of the paper's rows, and which tokens moved far."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from tests.models import prompt, tiny_llava
from tests.strategies.sites_factory import layer_site, model_shape
from tokentrim.contracts.sites import Need
from tokentrim.counting.published import PRESETS
from tokentrim.session import trim
from tokentrim_strategies.v2drop import V2Drop


def test_counts_of_the_released_code():
    assert V2Drop().schedule(model_shape(), 576).steps == ((3, 144), (16, 7), (22, 1))
    assert V2Drop().schedule(model_shape(28), 576).steps == ((2, 144), (14, 7), (19, 1))
    assert V2Drop().schedule(model_shape(), 1).steps == ((3, 1), (16, 1), (22, 1))
    assert V2Drop(least=0).schedule(model_shape(), 3).steps == ((3, 0), (16, 0), (22, 0))


@pytest.mark.parametrize(
    ("mean", "shares"), [(192, (0.5, 0.3, 0.0)), (128, (0.28, 0.25, 0.0)), (64, (0.05, 0.05, 0.0))]
)
def test_the_papers_rows_have_the_means_that_they_are_named_after(mean: int, shares: tuple[float, ...]):
    first, *later = shares
    strategy = V2Drop(boundaries=(3, 17, 22), first=first, later=tuple(later))
    layers = strategy.schedule(model_shape(), 576).per_layer(32, 576)
    assert sum(layers) / 32 == pytest.approx(mean, abs=4)


def test_scores_are_norms_of_what_a_layer_added():
    before = torch.tensor([[[1.0, 1.0], [0.0, 0.0], [5.0, 5.0]]])
    after = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 5.0]]])
    site = layer_site((3,), {Need.HIDDEN: after, Need.HIDDEN_BEFORE: before}, boundary=3)
    assert V2Drop().score(site).tolist() == [[1.0, 5.0, 0.0]]


def test_keeps_what_the_layer_moves_most_in_the_untouched_model_and_reads_no_attention():
    model = tiny_llava(side=4)
    inputs = prompt(model, [3, "image", 5])
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
        with trim(model, V2Drop(boundaries=(1,), later=())) as session:
            used = []
            hook = model.model.language_model.layers[0].register_forward_pre_hook(
                lambda *_: used.append(model.config.text_config._attn_implementation)
            )
            model(**inputs)
            hook.remove()
    moved = (states[1] - states[0])[0, 3:19].norm(dim=-1)
    assert session.trace.kept(1).tolist() == sorted(moved.topk(4).indices.tolist())
    assert used == ["sdpa"]


def test_meets_a_budget():
    shape = PRESETS["llava-1.5-7b"]
    assert V2Drop().at_budget(shape, 576, layer_mean_ratio=2 / 9)[1] == pytest.approx(2 / 9, abs=2e-3)


def test_a_share_for_every_cut():
    with pytest.raises(ValidationError, match="one for each cut"):
        V2Drop(later=(0.5,))
