"""The kernel floor runs what the plan says, and the limits are arithmetic on rates. Nothing here asserts a time."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.bench.small import SMALL
from tokentrim.bench import (
    BenchOptions,
    Geometry,
    KernelFloor,
    Limits,
    limits as bench_limits,
    run,
    runner as bench_runner,
)
from tokentrim.bench.geometry import build_model, build_prompt
from tokentrim.bench.limits import least_prefill_flops, measure_limits
from tokentrim.bench.profile import _tower
from tokentrim.bench.runner import widest
from tokentrim.bench.subject import at_budget, shape_for
from tokentrim.config.specs import Spec, strategy_from
from tokentrim.contracts.adapter import Layout
from tokentrim.contracts.strategy import Strategy
from tokentrim.counting.costs import Usage, physical_flops
from tokentrim.counting.forecast import plan
from tokentrim.runs.stopwatch import generate
from tokentrim.session import adapter_of, trim

TEXT = 6
BATCH = 2
CPU = torch.device("cpu")
PVTP = {"name": "pvtp", "start": 2, "stride": 3, "prune_ratio": 0.5}
STRATEGIES: list[Spec] = ["none", PVTP, "fastv", "random", "st3", "text-only"]


@pytest.fixture(scope="module", params=SMALL)
def options(request: Any) -> BenchOptions:
    return BenchOptions(geometry=request.param, prompt_tokens=TEXT)


@pytest.fixture(scope="module")
def geometry(options: BenchOptions) -> Geometry:
    return options.sizes


@pytest.fixture(scope="module")
def model(geometry: Geometry) -> Any:
    return build_model(geometry, CPU, torch.float32, seed=0)


@pytest.fixture(scope="module")
def layout(model: Any, options: BenchOptions) -> Layout:
    found = adapter_of(model).locate(model)
    return replace(found, shape=shape_for(found.shape, options))


@pytest.fixture(scope="module")
def inputs(model: Any, geometry: Geometry) -> dict[str, torch.Tensor]:
    return build_prompt(geometry, model, batch=BATCH, prompt_tokens=TEXT, seed=0)


class Widths:
    """Rows and tokens that each decoder layer put out, and those of tower and head."""

    def __init__(self, model: Any, layout: Layout) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.head: list[tuple[int, ...]] = []
        self.tower: list[nn.Module] = []
        self._handles = [layer.register_forward_hook(self._note(self.seen)) for layer in layout.layers]
        self._handles.append(model.lm_head.register_forward_hook(self._note(self.head)))
        self._handles.append(_tower(layout).register_forward_hook(lambda tower, *_: self.tower.append(tower)))

    @staticmethod
    def _note(seen: list[tuple[int, ...]]) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen.append(tuple(output.shape))

        return hook

    def __enter__(self) -> Widths:
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()


@pytest.mark.parametrize("spec", STRATEGIES, ids=str)
def test_the_floor_runs_exactly_what_the_strategy_runs(
    spec: Spec, options: BenchOptions, model: Any, layout: Layout, inputs: dict[str, torch.Tensor]
):
    strategy = at_budget(spec, layout.shape, options.n_visual, options)
    usage = plan(strategy, layout.shape, options.n_visual, options.n_text).usage
    with torch.inference_mode():
        floor = KernelFloor(model, layout, inputs, usage.layer_totals)
        with Widths(model, layout) as alone:
            logits = floor.run()
        with ExitStack() as stack:
            trimmed: AbstractContextManager[Any] = nullcontext() if spec == "none" else trim(model, strategy)
            stack.enter_context(trimmed)
            with Widths(model, layout) as pruned:
                generate(model, inputs, 1)
    width = layout.shape.hidden_size
    assert alone.seen == [(BATCH, n, width) for n in usage.layer_totals]
    assert alone.seen == pruned.seen
    assert alone.head == pruned.head == [(BATCH, 1, options.sizes.vocab_size)]
    assert len(alone.tower) == len(pruned.tower) == 1
    assert logits.shape == (BATCH, 1, options.sizes.vocab_size)
    assert torch.isfinite(logits).all()


def test_the_floor_is_causal_and_the_models_own(model: Any, layout: Layout, inputs: dict[str, torch.Tensor]):
    """On the prompt's embeddings instead of noise it gives the untouched model's logits."""
    with torch.inference_mode():
        embeds: list[torch.Tensor] = []
        handle = layout.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: embeds.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        total = inputs["input_ids"].shape[1]
        positions = torch.arange(total).expand(*([3] if layout.mrope else []), BATCH, total)
        logits = model(**inputs, position_ids=positions).logits
        handle.remove()
        floor = KernelFloor(model, layout, inputs, [total] * 12)
        floor._hidden = embeds[0]  # pyright: ignore[reportPrivateUsage]
        assert torch.allclose(floor.run(), logits[:, -1:], atol=1e-5)


def test_the_floor_takes_time(model: Any, layout: Layout, inputs: dict[str, torch.Tensor]):
    with torch.inference_mode():
        assert KernelFloor(model, layout, inputs, [8] * 12).seconds() > 0


def test_eager_attention_gets_its_mask(geometry: Geometry, inputs: dict[str, torch.Tensor]):
    model = build_model(geometry, CPU, torch.float32, seed=0)
    fused = adapter_of(model).locate(model)
    with torch.inference_mode():
        totals = [22] * 4 + [9] * 8
        expected = KernelFloor(model, fused, inputs, totals).run()
        model.set_attn_implementation("eager")
        found = KernelFloor(model, adapter_of(model).locate(model), inputs, totals).run()
    assert torch.allclose(found, expected, atol=1e-5)


# ---------------------------------------------------------------------- limits


def test_limits_are_measured_on_the_models_own_matrices(model: Any, layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_limits, "_TRIES", 1)
    with torch.inference_mode():
        limits = measure_limits(model, layout, [22, 8, 22], buffer_bytes=2**16)
    assert list(limits.matrix_rates) == [8, 22]
    assert set(limits.bandwidths) == {"copy", "sum", "product"}
    for rate in (*limits.matrix_rates.values(), *limits.bandwidths.values()):
        assert 0 < rate < float("inf")
    text = layout.shape
    biases = sum(p.numel() for name, p in layout.layers[0].named_parameters() if name.endswith("bias"))
    attention = 2 * text.hidden_size * (text.n_heads + text.n_kv_heads) * text.head_dim + biases
    layer = attention + 3 * text.hidden_size * text.intermediate_size + 2 * text.hidden_size
    head = text.hidden_size * text.vocab_size
    assert limits.weight_bytes == 4 * (text.n_layers * layer + text.hidden_size + head)


def test_floors_are_flops_and_bytes_over_the_best_rate(layout: Layout):
    shape = layout.shape
    usage = Usage(shape, 16, TEXT, (16,) * 6 + (4,) * 6, ((4,) * 12,))
    limits = Limits({22: 1e9, 10: 2e9}, {"copy": 1e6, "sum": 4e6}, 1000)
    assert limits.prefill_seconds(usage, 3) == 3 * least_prefill_flops(usage) / 2e9
    entries = 12 * (4 + TEXT + 1)
    assert limits.decode_seconds(usage, 3) == (1000 + 3 * entries * shape.kv_bytes_per_token_layer) / 4e6
    better = limits.best(Limits({22: 3e9, 10: 1e9}, {"copy": 2e6, "sum": 3e6}, 1000))
    assert better == Limits({22: 3e9, 10: 2e9}, {"copy": 2e6, "sum": 4e6}, 1000)


def test_least_flops_count_attention_under_the_diagonal_only(layout: Layout):
    shape = layout.shape
    usage = Usage(shape, 16, TEXT, (16, 5) + (0,) * 10)
    slow = 0
    for n in usage.layer_totals:
        pairs = sum(1 for query in range(n) for key in range(n) if key <= query)
        square = 4 * n * n * shape.n_heads * shape.head_dim
        slow += physical_flops(n, n, shape) - square + 4 * pairs * shape.n_heads * shape.head_dim
    assert least_prefill_flops(usage) - (usage.prefill_flops_whole - usage.prefill_flops) == slow


@pytest.mark.parametrize("name", SMALL)
def test_a_bench_with_limits_says_its_distance_to_them(name: str, monkeypatch: pytest.MonkeyPatch):
    asked: list[set[int]] = []

    def measure(model: Any, layout: Layout, rows: set[int], **options: Any) -> Limits:
        asked.append(rows)
        return measure_limits(model, layout, rows, buffer_bytes=2**16, **options)

    monkeypatch.setattr(bench_runner, "measure_limits", measure)
    monkeypatch.setattr(bench_limits, "_TRIES", 1)
    options = BenchOptions(
        geometry=name, strategies=("fastv",), new_tokens=2, repeats=1, prompt_tokens=TEXT, batch=BATCH, limits=True,
        memory=False, device="cpu",
    )  # fmt: skip
    result = run(options)
    untouched, fastv = result.untouched, result.rows[1]
    full = BATCH * (options.n_visual + options.n_text)
    assert len(asked) == 2  # before and behind the repeats
    assert asked[0] == asked[1]
    assert max(asked[0]) == full
    assert result.limits is not None
    for row in (untouched, fastv):
        assert row.of_prefill_limit == row.prefill_limit_seconds / row.prefill_seconds.median  # type: ignore[operator]
        assert row.of_decode_limit == row.decode_limit_seconds / row.decode_seconds_per_token.median  # type: ignore[operator]
        assert 0 < row.of_prefill_limit < float("inf")
        assert 0 < row.of_decode_limit < float("inf")
    assert fastv.prefill_limit_seconds < untouched.prefill_limit_seconds  # type: ignore[operator]
    assert fastv.decode_limit_seconds < untouched.decode_limit_seconds  # type: ignore[operator]


# ---------------------------------------------------------------------- counts that depend on the data


@pytest.mark.parametrize("spec", [PVTP, {"spatial": PVTP, "temporal": {"name": "vta", "horizon": 4}}], ids=str)
def test_measured_usage_is_the_planned_one_where_counts_are_static(
    spec: Spec, options: BenchOptions, model: Any, layout: Layout, inputs: dict[str, torch.Tensor]
):
    with torch.inference_mode(), trim(model, spec) as session:
        generate(model, inputs, 4)

    def planned_of(strategy: Strategy) -> Usage:
        return plan(strategy, layout.shape, options.n_visual, options.n_text, 4).usage

    planned, nothing = planned_of(session.strategy), planned_of(strategy_from("none").strategy)
    assert widest(nothing, session.trace) == planned
