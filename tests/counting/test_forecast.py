"""Plans against the cost tables that were computed independently for the published geometries."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from rich.console import Console
from torch import Tensor

from tokentrim.cli.plan import plan_table
from tokentrim.config.specs import strategy_from
from tokentrim.contracts.selection import Selection, top_selection
from tokentrim.contracts.sites import LayerSite
from tokentrim.contracts.strategy import SpatialSelector
from tokentrim.counting.forecast import Plan, layer_runs, plan
from tokentrim.counting.published import PRESETS
from tokentrim.counting.schedule import Schedule
from tokentrim.counting.shape import ModelShape
from tokentrim.errors import StrategyError

NONE = {"name": "none"}


def fastv(share: float, k: int = 2) -> dict[str, Any]:
    return {"name": "fastv", "k": k, "keep_ratio": share}


def pvtp(start: int, stride: int, prune_ratio: float) -> dict[str, Any]:
    return {"name": "pvtp", "start": start, "stride": stride, "prune_ratio": prune_ratio}


def withdraw(k: int) -> dict[str, Any]:
    return {"name": "text-only", "k": k}


PYRAMID = {
    "spatial": [{"name": "fastv", "k": k, "keep_ratio": share} for k, share in ((8, 0.5), (16, 0.25), (24, 0.125))]
}


def planned(spec: dict[str, Any], model: str = "llava-1.5-7b", n_visual: int = 576, **options: Any) -> Plan:
    return plan(strategy_from(spec).strategy, PRESETS[model], n_visual, **options)


# model, visual tokens, strategy, G MAC per layer, FLOPs % (field), TFLOP, visual KV %, total KV %, last layer
TABLE = [
    ("llava-1.5-7b", 576, NONE, 99.2, 100, 8.11, 100, 100, 576),
    ("llava-1.5-7b", 576, fastv(0.5), 54.6, 55.1, 4.48, 53.1, 55.8, 288),
    ("llava-1.5-7b", 576, fastv(0.25), 32.8, 33.1, 2.70, 29.7, 33.7, 144),
    ("llava-1.5-7b", 576, withdraw(15), 49.4, 49.8, 4.04, 46.9, 49.9, 0),
    ("llava-1.5-7b", 576, PYRAMID, 49.0, 49.5, 4.02, 46.9, 49.9, 72),
    ("llava-1.5-7b", 576, pvtp(2, 4, 0.25), 41.9, 42.2, 3.43, 39.3, 42.8, 57),
    ("llava-1.5-7b", 576, pvtp(2, 4, 0.30), 36.2, 36.5, 2.97, 33.2, 37.0, 32),
    ("llava-1.5-7b", 576, pvtp(2, 8, 0.50), 32.5, 32.8, 2.67, 29.3, 33.3, 36),
    ("llava-1.5-7b", 576, pvtp(2, 2, 0.20), 33.4, 33.7, 2.74, 30.2, 34.2, 19),
    ("llava-1.5-7b", 576, pvtp(3, 4, 0.50), 25.7, 25.9, 2.11, 21.8, 26.3, 2),
    ("llava-1.5-13b", 576, NONE, 154.4, 100, 15.81, 100, 100, 576),
    ("llava-1.5-13b", 576, fastv(0.5), 84.3, 54.6, 8.66, 52.5, 55.2, 288),
    ("llava-1.5-13b", 576, withdraw(20), 81.5, 52.8, 8.35, 50.0, 52.9, 0),
    ("llava-1.5-13b", 576, pvtp(2, 4, 0.25), 56.1, 36.4, 5.76, 32.9, 36.8, 31),
    ("llava-1.5-13b", 576, pvtp(2, 4, 0.30), 48.1, 31.1, 4.94, 27.4, 31.5, 15),
    ("llava-1.5-7b", 2880, NONE, 528.1, 100, 42.21, 100, 100, 2880),
    ("llava-1.5-7b", 2880, fastv(0.5), 267.2, 50.6, 21.62, 53.1, 53.7, 1440),
    ("llava-1.5-7b", 2880, pvtp(2, 4, 0.30), 169.5, 32.1, 13.72, 33.3, 34.1, 165),
]


@pytest.mark.parametrize(
    ("model", "n_visual", "spec", "macs", "flops", "tera", "kv", "kv_total", "last"), TABLE, ids=str
)
def test_cost_table(
    model: str,
    n_visual: int,
    spec: dict[str, Any],
    macs: float,
    flops: float,
    tera: float,
    kv: float,
    kv_total: float,
    last: int,
):
    usage = planned(spec, model, n_visual, new_tokens=1).usage
    assert usage.n_text == 35
    # One unit of the last printed digit, because some cells were rounded half to even and some were cut.
    assert usage.macs_per_layer / 1e9 == pytest.approx(macs, abs=0.0501)
    assert 100 * usage.flops_ratio_field == pytest.approx(flops, abs=0.0501)
    assert usage.prefill_flops / 1e12 == pytest.approx(tera, abs=0.00501)
    assert 100 * usage.kv_peak_ratio == pytest.approx(kv, abs=0.0501)
    assert 100 * usage.kv_total_mean_ratio == pytest.approx(kv_total, abs=0.0501)
    assert usage.layer_tokens[-1] == last


@pytest.mark.parametrize(
    ("spec", "macs"),
    [
        (fastv(0.1), 19.8),
        ({"name": "fastv", "k": 2, "keep_count": 58}, 20.0),
        (fastv(0.5, k=3), 56.1),
    ],
)
def test_fastv_rows_of_the_published_table(spec: dict[str, Any], macs: float):
    assert planned(spec).usage.macs_per_layer / 1e9 == pytest.approx(macs, abs=0.0501)


@pytest.mark.parametrize(
    ("attenuation", "new_tokens", "mean", "end"),
    [
        ("linear", 64, (27, 28), 18),
        ("cosine", 64, (27, 28), 17),
        ("exponential", 64, (22, 22.5), 19),
        ("linear", 12, (36.5, 37.5), None),
        ("cosine", 12, (38.5, 39.5), None),
        ("exponential", 12, (31.5, 32.6), None),
    ],
)
def test_annealing_rows(attenuation: str, new_tokens: int, mean: tuple[float, float], end: float | None):
    spec = {**pvtp(2, 4, 0.3), "name": "st3", "attenuation": attenuation, "horizon": 64, "evict": True}
    usage = planned(spec, n_text=55, new_tokens=new_tokens).usage
    assert mean[0] <= 100 * usage.kv_total_mean_ratio <= mean[1]
    if end is not None:
        last = usage.n_steps
        assert round(100 * usage.entries(last) / usage.unpruned().entries(last)) == end


def test_spatial_part_alone_leaves_the_cache_as_it_is():
    usage = planned(pvtp(2, 4, 0.3), n_text=55, new_tokens=64).usage
    assert round(100 * usage.kv_total_mean_ratio) == 42
    assert round(100 * usage.entries(63) / usage.unpruned().entries(63)) == 45  # text and answer grow beside it
    assert usage.kv_mean_ratio == usage.kv_peak_ratio == usage.kv_end_ratio


def test_composition_equals_its_named_form():
    parts = {"spatial": pvtp(2, 4, 0.3), "temporal": {"name": "vta", "horizon": 32}}
    whole = {**pvtp(2, 4, 0.3), "name": "st3", "horizon": 32}
    assert planned(parts).usage == planned({**whole, "evict": True}).usage
    parts["temporal"]["evict"] = False
    assert planned(parts).usage == planned(whole).usage


def test_counts_never_rise_over_layers_or_steps():
    usage = planned({"name": "st3", "attenuation": "exponential", "evict": True}).usage
    for earlier, later in zip(usage.layer_tokens, usage.layer_tokens[1:], strict=False):
        assert later <= earlier
    for before, after in zip((usage.layer_tokens, *usage.cached), usage.cached, strict=False):
        assert all(late <= early for early, late in zip(before, after, strict=True))


def test_later_part_is_told_the_original_count_and_clipped():
    first = {"name": "random", "boundary": 0, "keep_ratio": 0.25}
    usage = planned({"spatial": [fastv(0.5), first]}).usage
    assert set(usage.layer_tokens) == {144}  # half of 576 is more than what is left
    usage = planned({"spatial": [first, fastv(0.1)]}).usage
    assert usage.layer_tokens == (144, 144) + (57,) * 30


class Bounded(SpatialSelector):
    """Keeps at most a half."""

    name: ClassVar[str] = "bounded"
    count_is_static: ClassVar[bool] = False

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        return Schedule.of({1: n_visual // 2})

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        return top_selection(site.valid.float(), tuple(count.tolist()), site.n_visual)


def test_data_dependent_counts_are_called_bounds():
    result = plan(Bounded(), PRESETS["llava-1.5-7b"], 576)
    assert not result.exact
    assert "upper bound" in result.notes[0]
    assert result.usage.layer_tokens[-1] == 288
    console = Console(record=True, width=120)
    console.print(plan_table(result))
    assert "at most 288" in console.export_text()


def test_static_strategy_is_exact():
    result = planned({"name": "st3"})
    assert result.exact
    assert result.notes == ()


def test_dict_holds_every_figure():
    data = planned({"name": "st3", "evict": True}).to_dict()
    assert data["layer_tokens"][:3] == [576, 576, 288]
    assert data["n_layers"] == len(data["layer_tokens"]) == len(data["layer_macs_field"]) == 32
    assert data["kv_bytes_peak"] < data["kv_bytes_peak_unpruned"]
    assert data["kv_bytes_end"] < data["kv_bytes_peak"]
    assert data["spec"]["name"] == "st3"
    assert sum(data["layer_macs_field"]) / 32 == data["macs_per_layer_field"]
    for name in (
        "layer_mean_ratio",
        "flops_ratio",
        "kv_mean_ratio",
        "kv_end_ratio",
        "kv_read_ratio",
        "kv_total_mean_ratio",
    ):
        assert 0 <= data[name] < 1


def test_table_shows_runs_of_layers():
    console = Console(record=True, width=120)
    console.print(plan_table(planned(pvtp(2, 4, 0.3))))
    text = console.export_text()
    assert "layers 0-1" in text
    assert "layers 30-31" in text
    assert "33.2%" in text
    assert layer_runs((5, 5, 3, 0, 0)) == [(0, 1, 5), (2, 2, 3), (3, 4, 0)]


def test_prompt_without_visual_tokens():
    result = plan(strategy_from("st3").strategy, PRESETS["llava-1.5-7b"], 0)
    assert result.usage.layer_mean_ratio == 1
    plan_table(result)


@pytest.mark.parametrize("options", [{"n_text": -1}, {"new_tokens": 0}, {"n_visual": -5}])
def test_impossible_prompts_are_refused(options: dict[str, int]):
    values = {"n_visual": 576, **options}
    with pytest.raises(StrategyError, match=f"{next(iter(options))} of a plan must be"):
        plan(strategy_from("none").strategy, PRESETS["llava-1.5-7b"], **values)
