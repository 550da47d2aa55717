"""``layer-counts``: counts and scores by the formula, schedule files, and what it refuses."""

import pytest
import torch
import yaml
from hypothesis import given, strategies as st

from tests.models import prompt, tiny_llava
from tests.strategies.sites_factory import attention, layer_site, model_shape
from tokentrim.calibrate.psigmoid import Depth, counts_of
from tokentrim.config.schedule_file import rates_of
from tokentrim.config.specs import load_config, strategy_from
from tokentrim.contracts.selection import top_selection
from tokentrim.contracts.sites import Need
from tokentrim.counting.schedule import Schedule
from tokentrim.errors import ConfigError, StrategyError
from tokentrim.session import trim
from tokentrim_strategies.fastv import FastV
from tokentrim_strategies.layer_counts import LayerCounts


def test_counts_are_exact_shares_of_all_tokens():
    strategy = LayerCounts(rates={1: 1.0, 2: 0.7, 3: 0.7, 5: 0.29})
    assert strategy.schedule(model_shape(8), 10) == Schedule.of({2: 7, 5: 2})  # nothing falls at 1 and 3
    assert strategy.schedule(model_shape(8), 576) == Schedule.of({2: 403, 5: 167})
    assert LayerCounts(counts={2: 9, 4: 3}).schedule(model_shape(8), 7) == Schedule.of({2: 7, 4: 3})


def test_the_default_is_fastvs_cut():
    shape = model_shape(32)
    assert LayerCounts().schedule(shape, 576) == FastV().schedule(shape, 576)


def test_scores_are_means_over_heads_and_real_text():
    rows, valid = attention(2, 3, 4, 5), torch.tensor([[True] * 4, [True, True, False, False]])
    rows[1, :, 2:] = torch.nan
    by_text = LayerCounts(query="text")
    assert by_text.needed() == {Need.TEXT_ROWS}
    score = by_text.score(layer_site((5, 5), {Need.TEXT_ROWS: (rows, valid)}, boundary=2))
    for sample, real in enumerate([4, 2]):
        for token in range(5):
            seen = [rows[sample, head, text, token].item() for head in range(3) for text in range(real)]
            assert score[sample, token].item() == pytest.approx(sum(seen) / len(seen), abs=1e-15)
    last = attention(1, 3, 5)
    by_last = LayerCounts(query="last")
    assert by_last.needed() == {Need.LAST_ROW}
    score = by_last.score(layer_site((5,), {Need.LAST_ROW: last}, boundary=2))
    expected = [sum(last[0, head, token].item() for head in range(3)) / 3 for token in range(5)]
    assert score[0].tolist() == pytest.approx(expected, abs=1e-15)


@given(token=st.integers(0, 5), head=st.integers(0, 1), gain=st.floats(0.0, 1.0), kept=st.integers(1, 6))
def test_raising_a_tokens_attention_never_drops_it(token: int, head: int, gain: float, kept: int):
    rows = attention(1, 2, 6)
    strategy = LayerCounts(query="last")

    def keeps(row):
        score = strategy.score(layer_site((6,), {Need.LAST_ROW: row}, boundary=2))
        return token in top_selection(score, (kept,), (6,)).kept[0].tolist()

    raised = rows.clone()
    raised[0, head, token] += gain
    assert keeps(raised) or not keeps(rows)


def test_psigmoid_with_a_step_curve_selects_as_fastv():
    depth = Depth(layers=6, first=1, n_visual=64, total=2 * 64 + 4 * 32)
    counts, _ = counts_of(depth, lo=0.5, hi=1.0, width=0.05)
    assert counts == (64, 64, 32, 32, 32, 32)
    step = LayerCounts(rates=rates_of(counts, 64), query="last")
    model = tiny_llava()
    inputs = prompt(model, [3, "image", 9], ["image", 5])
    kept = {}
    for name, strategy in (("step", step), ("fastv", FastV(k=2, keep_ratio=0.5))):
        with trim(model, strategy) as session:
            model.generate(**inputs, max_new_tokens=2, do_sample=False)
        trace = session.trace
        kept[name] = [trace.kept(layer, sample).tolist() for layer in range(6) for sample in range(2)]
    assert kept["step"] == kept["fastv"]
    assert [len(tokens) for tokens in kept["step"]] == [64] * 4 + [32] * 8


# ---------------------------------------------------------------------- files

CONTENT = {
    "format": 1,
    "method": "gsearch",
    "made_for": {"layers": 8, "hidden_size": 16, "heads": 2},
    "query": "last",
    "rates": {2: 0.6, 4: 0.25},
    "provenance": {"seed": 0},
}


def written(folder, **changes):
    path = folder / "schedule.yaml"
    path.write_text(yaml.safe_dump({**CONTENT, **changes}))
    return path


def test_a_file_brings_everything(tmp_path):
    strategy = LayerCounts(file=written(tmp_path))
    assert strategy.schedule(model_shape(8), 100) == Schedule.of({2: 60, 4: 25})
    assert strategy.query == "last"
    assert strategy.label() == "layer-counts(schedule.yaml)"
    counted = LayerCounts(file=written(tmp_path, rates=None, counts={3: 5}))
    assert counted.schedule(model_shape(8), 100) == Schedule.of({3: 5})


def test_its_record_holds_the_content_of_the_file(tmp_path):
    path = written(tmp_path)
    strategy = LayerCounts(file=path)
    path.unlink()
    again = strategy_from(strategy.spec()).strategy
    assert again == LayerCounts(rates=CONTENT["rates"], query="last", made_for=CONTENT["made_for"])


def test_a_path_in_a_configuration_is_relative_to_it(tmp_path):
    written(tmp_path)
    config = tmp_path / "run.yaml"
    config.write_text("strategy: {name: layer-counts, file: schedule.yaml}\n")
    assert load_config(config).strategy.strategy.rates == CONTENT["rates"]
    inside = tmp_path / "composed.yaml"
    inside.write_text("spatial: [{name: layer-counts, file: schedule.yaml}]\ntemporal: {name: vta}\n")
    (part,) = strategy_from(inside).strategy.spatial_parts
    assert part.rates == CONTENT["rates"]


@pytest.mark.parametrize(
    ("shape", "found"),
    [(model_shape(6), "layers 6"), (model_shape(9), "layers 9")],
)
def test_a_model_of_other_sizes_is_refused(tmp_path, shape, found):
    path = written(tmp_path)
    with pytest.raises(StrategyError, match=f"must have layers 8, .*{found}"):
        LayerCounts(file=path).schedule(shape, 100)
    wider = written(tmp_path, made_for={"layers": 8, "hidden_size": 32, "heads": 4})
    with pytest.raises(StrategyError, match="must have hidden_size 32, heads 4"):
        LayerCounts(file=wider).schedule(model_shape(8), 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": {2: 0.5, 3: 0.6}}, "never rise"),
        ({"rates": {0: 0.5}}, "at least 1"),
        ({"rates": {}}, "at least 1"),
        ({"rates": {2: 1.5}}, r"\[0, 1\]"),
        ({"rates": {2: -0.5}}, ">= 0"),
        ({"rates": {2: float("nan")}}, "finite"),
        ({"rates": None}, "either rates or counts"),
        ({"counts": {2: 5}}, "either rates or counts"),
        ({"format": 2}, "be 1"),
        ({"quary": "last"}, "Did you mean 'query'"),
        ({"query": "first"}, "'text' or 'last'"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, changes, message):
    path = written(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message) as caught:
        strategy_from({"name": "layer-counts", "file": str(path)})
    assert "schedule.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rates": {2: 0.5}, "counts": {2: 3}}, "come from one place"),
        ({"file": "x.yaml", "query": "last"}, "come from one place"),
        ({"file": "missing.yaml"}, "must exist"),
        ({"rates": {3: 0.2, 4: 0.3}}, "never rise"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        strategy_from({"name": "layer-counts", **given})


def test_a_boundary_outside_the_model_is_refused():
    with pytest.raises(StrategyError, match="below 8"):
        LayerCounts(rates={2: 0.5, 9: 0.1}).schedule(model_shape(8), 100)
