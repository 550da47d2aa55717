"""The bench's shape of output and its arithmetic. Nothing here asserts a time: the machine may be busy."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from tokentrim.bench import (
    GEOMETRIES,
    BenchOptions,
    BenchResult,
    BenchRow,
    Spread,
    markdown,
    run,
    split_strategies,
)
from tokentrim.bench.geometry import build_model, build_prompt
from tokentrim.bench.limits import Limits
from tokentrim.bench.subject import BenchSubject, at_budget
from tokentrim.cli import app
from tokentrim.config.specs import strategy_from
from tokentrim.counting.published import PRESETS
from tokentrim.errors import ConfigError, ResultsError, StrategyError, UnknownNameError
from tokentrim.runs.stopwatch import Stopwatch, peak_bytes

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
    assert set(data) == {"command", "options", "environment", "limits", "untouched", "rows", "targets"}
    assert data["options"]["geometry"] == "tiny"
    assert data["limits"] is None
    assert data["environment"]["versions"]["torch"] == torch.__version__
    for row in data["rows"]:
        assert row["attained"] == row["speed_up"]["median"] / row["implied_speed_up"]
        assert row["peak_bytes"] > 0
        assert row["decode_seconds_per_token"]["median"] > 0
        assert row["kernels_attain"] == row["kernel_speed_up"]["median"] / row["implied_speed_up"]
        assert row["of_prefill_limit"] is row["of_decode_limit"] is None
    for row in (data["untouched"], *data["rows"]):
        for figure in ("kernel_floor_seconds", "of_kernel_floor", "kernel_speed_up"):
            assert row[figure]["n"] == row["prefill_seconds"]["n"]
            assert 0 < row[figure]["median"] < float("inf")
    wanted = {target["what"] for target in data["targets"] if target["met"] is not None}
    assert wanted == {"decode / untouched", "measured / implied speed-up", "selection / prefill", "peak / untouched"}
    told = {target["what"] for target in data["targets"] if target["met"] is None}
    assert told == {"of kernel floor", "kernels alone / implied speed-up"}
    assert all((target["wanted"] is None) == (target["met"] is None) for target in data["targets"])


def test_table_has_a_line_per_strategy(result: BenchResult):
    console = Console(record=True, width=160)
    console.print(result.table())
    text = console.export_text()
    for label in ("untouched", "none", "random"):
        assert label in text


def row(
    spec: dict[str, Any] | None, speed_up: float = 1.0, peak: int | None = 100, name: str = "x", **changed: Any
) -> BenchRow:
    one = Spread.of([1.0])
    figures: dict[str, Any] = {
        "strategy": name,
        "spec": spec,
        "layer_mean_ratio": 0.25,
        "flops_ratio": 0.3,
        "kv_mean_ratio": 0.25,
        "prefill_seconds": one,
        "decode_seconds_per_token": one,
        "selection_seconds": Spread.of([0.03]),
        "speed_up": Spread.of([speed_up]),
        "implied_speed_up": 3.0,
        "decode_ratio": Spread.of([1.02]),
        "kernel_floor_seconds": Spread.of([0.9]),
        "of_kernel_floor": Spread.of([0.9]),
        "kernel_speed_up": Spread.of([2.85]),
        "implied_decode_speed_up": 1.25,
        "prefill_limit_seconds": None,
        "decode_limit_seconds": None,
        "peak_bytes": peak,
    }
    return BenchRow(**{**figures, **changed})


def bench_of(untouched: BenchRow, *rows: BenchRow, limits: Limits | None = None) -> BenchResult:
    options = {
        "geometry": "tiny", "batch": 1, "images": 1, "repeats": 1, "prompt_tokens": 6, "compile": False
    }  # fmt: skip
    where = {
        "device": "CPU (x)", "dtype": "float32", "threads": 2, "versions": {"torch": "1.2", "transformers": "3.4"}
    }  # fmt: skip
    return BenchResult("tokentrim bench", options, where, untouched, rows, limits)


def test_targets_say_what_is_met():
    rows = (row({"name": "none"}), row({"name": "a"}, speed_up=2.7), row({"name": "b"}, speed_up=2.6, peak=101))
    found = bench_of(row(None), *rows)
    judged = [target for target in found.targets() if target["met"] is not None]
    met = {(index, target["what"]): target["met"] for index, target in enumerate(judged)}
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


def test_a_missed_speed_up_is_taken_apart():
    slow = row({"name": "b"}, speed_up=2.4, name="b", of_kernel_floor=Spread.of([0.8]))
    assert bench_of(row(None, name="untouched"), slow).missed()[0] == (
        "b: measured / implied speed-up is 0.800, wanted >= 0.9; the kernels alone reach 0.950, "
        "and are 0.800 of this prefill (0.900 of the untouched one)"
    )


def test_spread_is_median_and_quartiles():
    assert Spread.of([5.0]) == Spread(5.0, 5.0, 5.0, 1)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 100.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 100.0]).text(10, 1) == "30.0 ±10.0"
    assert Spread.of([2.0]).text() == "2.00"


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
        ({"attn_implementation": "eagre"}, ConfigError, "Did you mean 'eager'"),
        ({"device_map": "auto"}, ConfigError, "device_map of a bench must be left out; got 'auto'. Its floor and"),
    ],
)
def test_bad_options_are_refused(values: dict[str, Any], kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        BenchOptions(**values)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_refused():
    with pytest.raises(ConfigError, match="finds no GPU"):
        run(BenchOptions(geometry="tiny", device="cuda"))


@pytest.mark.parametrize("geometry", ["tiny", "tiny-qwen", "testbed"])
def test_the_attention_is_the_one_that_was_asked_for(geometry: str):
    options = BenchOptions(geometry=geometry, device="cpu", attn_implementation="eager")
    config = BenchSubject.of(options).model.config
    assert config.get_text_config()._attn_implementation == "eager"
    assert options.command().endswith("--device cpu --attn-implementation eager")


def test_an_attention_whose_library_is_missing_is_refused_by_name():
    options = BenchOptions(geometry="tiny", device="cpu", attn_implementation="flash_attention_2")
    with pytest.raises(ConfigError, match="attn_implementation 'flash_attention_2' of a bench must be one that its"):
        BenchSubject.of(options)


# ---------------------------------------------------------------------- what is printed and read back


def limits_of_a_machine() -> Limits:
    return Limits({22: 1e9, 8: 5e8}, {"copy": 2e9, "sum": 1e9, "product": 3e9}, 2**20)


def test_a_result_is_read_back_as_it_was_written(result: BenchResult, tmp_path: Path):
    bounded = replace(result, limits=limits_of_a_machine())
    for index, one in enumerate((result, bounded)):
        path = tmp_path / f"{index}.json"
        path.write_text(json.dumps(one.to_dict()))
        assert BenchResult.read(path) == one


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"command": ""}', '{"command": "", "options": []}'])
def test_what_is_no_result_is_refused(text: str | None, tmp_path: Path):
    path = tmp_path / "some.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ResultsError, match="be a result of a bench"):
        BenchResult.read(path)


def test_a_result_of_an_unknown_geometry_is_refused(result: BenchResult, tmp_path: Path):
    path = tmp_path / "some.json"
    of_no_sizes = {name: value for name, value in result.environment.items() if name != "sizes"}
    path.write_text(json.dumps({**result.to_dict(), "options": {"geometry": "gone"}, "environment": of_no_sizes}))
    with pytest.raises(ResultsError, match="'gone'"):
        BenchResult.read(path)


def test_markdown_holds_the_command_a_line_per_strategy_and_all_parameters(result: BenchResult):
    lines = markdown(result).splitlines()
    words = " ".join(lines)
    assert "`tokentrim bench --geometry tiny --strategies random --device cpu --prompt-tokens 6" in words
    table = [line for line in lines if line.startswith("|")]
    labels = ["untouched", *(row.strategy for row in result.rows)]
    assert [line.split("|")[1].strip() for line in table] == ["strategy", "---", *labels]
    assert len({line.count("|") for line in table}) == 1
    assert "seed: 0" in words  # a default, which the label leaves out
    assert all(len(line) <= 120 for line in lines if not line.startswith("|"))


def test_markdown_with_limits_has_their_columns_and_rates():
    limits = limits_of_a_machine()
    bounds = {"prefill_limit_seconds": 0.5, "decode_limit_seconds": 0.25}
    ran = row({"name": "a", "every": 1}, 2.9, name="a", selection_seconds=Spread.of([0.01]), **bounds)
    text = markdown(bench_of(row(None, **bounds), ran, limits=limits))
    assert "| of prefill limit | of decode limit |" in text
    assert "| 0.50 | 0.25 |" in text
    assert "by rows: 0 at 8, 1 at 22." in text
    assert "copy 2.0, sum 1.0, product 3.0" in text
    assert "Every target is met." in text
    assert "`{name: a, every: 1}`" in text


def test_a_command_names_what_differs_from_the_defaults():
    assert BenchOptions().command() == "tokentrim bench"
    options = BenchOptions(
        strategies=("st3", {"name": "fastv", "k": 3}, strategy_from("none").strategy),
        layer_mean_ratio=None,
        memory=False,
        limits=True,
        threads=2,
    )
    words = shlex.split(options.command())
    at = words.index("--strategies")
    assert split_strategies(words[at + 1]) == ("st3", '{"name": "fastv", "k": 3}', '{"name": "none"}')
    assert words[:at] == ["tokentrim", "bench"]
    assert words[at + 2 :] == ["--layer-mean-ratio", "0", "--threads", "2", "--no-memory", "--limits"]


def test_the_command_line_prints_a_saved_result(result: BenchResult, tmp_path: Path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(result.to_dict()))
    shown = CliRunner().invoke(app, ["bench", "--read", str(path), "--markdown"])
    assert (shown.exit_code, shown.stdout) == (0, markdown(result))
    shown = CliRunner().invoke(app, ["bench", "--read", str(path)])
    assert "of floor" in shown.stdout
    refused = CliRunner().invoke(app, ["bench", "--json", "--markdown"])
    assert refused.exit_code == 2
    assert isinstance(refused.exception, SystemExit)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_several_images_and_compiled_decoding(graphs_alone: None):
    options = BenchOptions(
        geometry="tiny", strategies=("random",), images=3, batch=2, new_tokens=4, repeats=1, compile=True, memory=False,
        device="cpu", layer_mean_ratio=0.5,
    )  # fmt: skip
    found = run(options)
    assert "--images 3" in found.command
    assert "--compile" in found.command
    random = found.rows[1]
    assert random.layer_mean_ratio == 0.5
    assert random.implied_decode_speed_up > 1
    assert random.decode_attained == 1 / random.decode_ratio.median / random.implied_decode_speed_up
    assert "48 visual" in markdown(found)
    assert "compiled decoding" in markdown(found)


def test_a_model_is_benched_by_its_name_and_read_back_without_it(tmp_path: Path):
    result = run(BenchOptions(geometry="testbed", strategies=("random",), repeats=1, new_tokens=2, memory=False))
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({**result.to_dict(), "options": {**result.options, "geometry": "elsewhere/gone"}}))
    found = BenchResult.read(path)
    assert "hidden" in markdown(found)
    assert not found.uncounted()
