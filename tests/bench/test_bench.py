"""The bench's shape of output and its arithmetic. Nothing here asserts a time: the machine may be busy."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console

from tokentrim.bench import (
    GEOMETRIES,
    BenchOptions,
    BenchResult,
    BenchRow,
    Spread,
    run,
    split_strategies,
)
from tokentrim.bench.geometry import build_model, build_prompt
from tokentrim.bench.measure import Stopwatch, peak_bytes
from tokentrim.bench.runner import at_budget
from tokentrim.config import strategy_from
from tokentrim.errors import ConfigError, StrategyError, UnknownNameError
from tokentrim.presets import PRESETS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def result() -> BenchResult:
    before = torch.get_rng_state()
    found = run(
        BenchOptions(geometry="tiny", strategies=("random",), new_tokens=2, repeats=2, prompt_tokens=6, device="cpu")
    )
    assert torch.equal(before, torch.get_rng_state())
    return found


def test_rows_are_none_and_then_the_strategies(result: BenchResult):
    assert [row.spec and row.spec["name"] for row in result.rows] == ["none", "random"]
    assert result.untouched.spec is None
    none, random = result.rows
    assert none.layer_mean_ratio == none.flops_ratio == none.implied_speed_up == 1
    assert random.layer_mean_ratio == 0.25
    assert random.implied_speed_up > 1


def test_each_strategy_has_its_own_untouched_runs_beside_it(result: BenchResult):
    assert [row.prefill_seconds.n for row in result.rows] == [2, 2]
    assert result.untouched.prefill_seconds.n == 4


def test_every_figure_is_there(result: BenchResult):
    data = json.loads(json.dumps(result.to_dict()))
    assert set(data) == {"options", "environment", "untouched", "rows", "targets"}
    assert data["options"]["geometry"] == "tiny"
    assert data["environment"]["versions"]["torch"] == torch.__version__
    for row in data["rows"]:
        assert row["attained"] == row["speed_up"]["median"] / row["implied_speed_up"]
        assert row["peak_bytes"] > 0
        assert row["decode_seconds_per_token"]["median"] > 0
    whats = {target["what"] for target in data["targets"]}
    assert whats == {"decode / untouched", "measured / implied speed-up", "selection / prefill", "peak / untouched"}


def test_table_has_a_line_per_strategy(result: BenchResult):
    console = Console(record=True, width=160)
    console.print(result.table())
    text = console.export_text()
    for label in ("untouched", "none", "random"):
        assert label in text


def row(spec: dict[str, Any] | None, speed_up: float = 1.0, peak: int | None = 100) -> BenchRow:
    one = Spread.of([1.0])
    return BenchRow(
        strategy="x",
        spec=spec,
        layer_mean_ratio=0.25,
        flops_ratio=0.3,
        prefill_seconds=one,
        decode_seconds_per_token=one,
        selection_seconds=Spread.of([0.03]),
        speed_up=Spread.of([speed_up]),
        implied_speed_up=3.0,
        decode_ratio=Spread.of([1.02]),
        peak_bytes=peak,
    )


def test_targets_say_what_is_met():
    options = {"geometry": "tiny", "batch": 1, "repeats": 1}
    where = {"device": "CPU", "dtype": "float32"}
    rows = (row({"name": "none"}), row({"name": "a"}, speed_up=2.7), row({"name": "b"}, speed_up=2.6, peak=101))
    found = BenchResult(options, where, row(None), rows)
    met = {(index, target["what"]): target["met"] for index, target in enumerate(found.targets())}
    assert met == {
        (0, "decode / untouched"): False,
        (1, "measured / implied speed-up"): True,
        (2, "selection / prefill"): False,
        (3, "peak / untouched"): True,
        (4, "measured / implied speed-up"): False,
        (5, "selection / prefill"): False,
        (6, "peak / untouched"): False,
    }
    console = Console(record=True, width=160)
    console.print(found.table())
    assert "decode / untouched is 1.020" in console.export_text()


def test_spread_is_median_and_quartiles():
    assert Spread.of([5.0]) == Spread(5.0, 5.0, 5.0, 1)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 100.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 100.0]).text(10, 1) == "30.0 ±10.0"
    assert Spread.of([2.0]).text() == "2.00"


@pytest.mark.parametrize("name", ["scaled", "llava-1.5-7b", "llava-1.5-13b"])
def test_geometries_see_the_published_number_of_visual_tokens(name: str):
    assert GEOMETRIES[name].n_visual == 576


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-1.5-13b"])
def test_full_geometries_are_the_presets(name: str):
    geometry, preset = GEOMETRIES[name], PRESETS[name]
    for field in ("n_layers", "hidden_size", "n_heads", "intermediate_size", "vocab_size"):
        assert getattr(geometry, field) == getattr(preset, field)
    assert preset.vision is not None
    assert geometry.vision_hidden_size == preset.vision.hidden_size


def test_prompt_has_one_image_per_row_and_no_stray_placeholder():
    geometry = GEOMETRIES["tiny"]
    model = build_model(geometry, CPU, torch.float32, seed=0)
    inputs = build_prompt(geometry, model, batch=3, prompt_tokens=5, seed=0)
    assert inputs["input_ids"].shape == (3, 5 + 16)
    assert ((inputs["input_ids"] == model.config.image_token_id).sum(dim=1) == 16).all()
    again = build_model(geometry, CPU, torch.float32, seed=0)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_stopwatch_tells_prefill_from_decoding():
    watch = Stopwatch(CPU)
    watch._marks = [10.0, 12.0, 12.5, 13.5]  # pyright: ignore[reportPrivateUsage]
    timing = watch.timing()
    assert (timing.prefill_seconds, timing.decode_seconds_per_token) == (2.0, 0.75)
    watch._marks = [10.0, 12.0]  # pyright: ignore[reportPrivateUsage]
    assert watch.timing().decode_seconds_per_token is None


def allocate(*sizes: int) -> Callable[[], None]:
    def work() -> None:
        for size in sizes:
            torch.empty(size, dtype=torch.uint8).fill_(1)  # released before the next one is made

    return work


def test_peak_is_the_most_held_at_once():
    assert peak_bytes(CPU, allocate(1_000_000)) == 1_000_000
    assert peak_bytes(CPU, allocate(1_000_000, 3_000_000, 2_000_000)) == 3_000_000
    held = torch.zeros(500_000)  # there before, so it does not count
    assert peak_bytes(CPU, lambda: held.clone().add_(1)) == pytest.approx(2_000_000, abs=100)


def test_budgets_reach_what_has_a_knob():
    shape = PRESETS["llava-1.5-7b"]

    def label(spec: Any, ratio: float | None = 0.25) -> str:
        return at_budget(spec, shape, 576, BenchOptions(layer_mean_ratio=ratio)).label()

    assert label("fastv") == "fastv(keep_ratio=0.2)"
    assert label("fastv", None) == "fastv"
    assert label({"name": "fastv", "budget": {"layer_mean_ratio": 0.5}}) == "fastv(keep_ratio=0.466)"
    assert label("vta") == "vta"
    assert label("none") == "none"
    assert label({"spatial": "fastv", "temporal": "vta"}) == "fastv(keep_ratio=0.2) + vta"
    with pytest.raises(StrategyError, match="be at least"):
        label({"name": "random", "boundary": 20})


def test_commas_inside_brackets_belong_to_yaml():
    assert split_strategies("st3, {name: fastv, k: 3},random") == ("st3", "{name: fastv, k: 3}", "random")
    assert split_strategies("{spatial: [{name: a, b: 1}, c]}") == ("{spatial: [{name: a, b: 1}, c]}",)
    assert strategy_from(split_strategies("{name: fastv, k: 3}")[0]).strategy.spec()["k"] == 3


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"geometry": "scalled"}, UnknownNameError, "Did you mean 'scaled'"),
        ({"repeats": 0}, ConfigError, "repeats of a bench must be at least 1"),
        ({"new_tokens": 1}, ConfigError, "new_tokens of a bench must be at least 2"),
        ({"device": "tpu"}, ConfigError, "be one of auto, cpu, cuda"),
        ({"dtype": "int8"}, ConfigError, "be one of auto, float32"),
    ],
)
def test_bad_options_are_refused(values: dict[str, Any], kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        BenchOptions(**values)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_refused():
    with pytest.raises(ConfigError, match="finds no GPU"):
        run(BenchOptions(geometry="tiny", device="cuda"))
