"""``replay`` repeats a trace, per sample, boundary and step."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.strategies.sites_factory import counts_tensor, layer_site, model_shape, step_site
from tokentrim.contracts.extras import PromptInfo
from tokentrim.contracts.strategy import Parts
from tokentrim.counting.schedule import Schedule
from tokentrim.engine.tokens.trace import Trace
from tokentrim.errors import DataError, StrategyError
from tokentrim_strategies.replay import Replay, ReplaySpatial, ReplayTemporal

SHAPE = model_shape(n_layers=4)


def padded(*rows: list[int]) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


@pytest.fixture
def trace() -> Trace:
    """Two samples of 5 and 3 visual tokens in 4 layers; layer 0 evicts at step 2, layer 3 at step 1."""
    return Trace(
        n_visual=(5, 3),
        n_layers=4,
        steps=3,
        prefill=[(0, padded([0, 1, 2, 3, 4], [0, 1, 2])), (1, padded([0, 2, 4], [0, 1, 2])), (3, padded([4], [0, 2]))],
        evictions={0: [(2, padded([1, 3], [2]))], 3: [(1, padded([], [2]))]},
    )


def parts(trace: Trace) -> tuple[ReplaySpatial, ReplayTemporal]:
    taken = Replay.of(trace).parts()
    (spatial,), temporal = taken.spatial, taken.temporal
    assert isinstance(spatial, ReplaySpatial)
    assert isinstance(temporal, ReplayTemporal)
    return spatial, temporal


def test_schedule_has_the_boundaries_of_the_trace(trace: Trace):
    spatial, _ = parts(trace)
    assert spatial.schedule(SHAPE, 5) == Schedule.of({1: 3, 3: 1})
    assert spatial.schedule(SHAPE, 3) == Schedule.of({1: 3, 3: 2})
    assert spatial.schedule(SHAPE, 9) == Schedule.of({1: 3, 3: 2})  # some size; such a prompt is refused
    assert spatial.schedule(SHAPE, 0) == Schedule.of({1: 0, 3: 0})
    with pytest.raises(StrategyError, match="must have 4 decoder layers, as the trace; got 6"):
        spatial.schedule(model_shape(n_layers=6), 5)


def test_selects_the_recorded_sets(trace: Trace):
    spatial, _ = parts(trace)
    first = spatial.select(layer_site((5, 3), boundary=1), counts_tensor(3, 3))
    assert (first.kept.tolist(), first.counts) == ([[0, 2, 4], [0, 1, 2]], (3, 3))
    ids = torch.tensor([[0, 2, 4], [0, 1, 2]])
    second = spatial.select(layer_site((3, 3), boundary=3, ids=ids), counts_tensor(1, 2))
    assert (second.kept.tolist(), second.counts) == ([[2, -1], [0, 2]], (1, 2))


def test_evicts_the_recorded_sets(trace: Trace):
    _, temporal = parts(trace)
    assert [temporal.count(step, 0, 5, SHAPE) for step in (1, 2, 3, 9)] == [5, 2, 2, 2]
    assert [temporal.count(step, 3, 1, SHAPE) for step in (1, 2)] == [0, 0]
    assert temporal.count(1, 3, 2, SHAPE) == 1
    chosen = temporal.select(step_site((5, 3), step=2, layer=0), counts_tensor(2, 1))
    assert (chosen.kept.tolist(), chosen.counts) == ([[1, 3], [2, -1]], (2, 1))
    later = temporal.select(
        step_site((2, 1), step=7, layer=0, ids=torch.tensor([[1, 3], [2, -1]])), counts_tensor(2, 1)
    )
    assert later.kept.tolist() == [[0, 1], [0, -1]]


def test_parts_that_did_nothing_are_left_out(trace: Trace):
    still = Trace((5,), 4, 3, [(0, padded([0, 1, 2, 3, 4]))])
    assert Replay.of(still).parts() == Parts()
    pruned = Trace(trace.n_visual, 4, 3, trace.prefill)
    assert Replay.of(pruned).temporal_part is None
    evicted = Trace(trace.n_visual, 4, 3, trace.prefill[:1], trace.evictions)
    assert Replay.of(evicted).spatial_parts == ()


def test_reads_its_file(trace: Trace, tmp_path: Path):
    trace.save(tmp_path / "run.safetensors")
    replay = Replay(file=tmp_path / "run.safetensors", positions="renumber")
    assert replay.trace.rows_equal(trace)
    assert replay.spatial_parts[0].positions == "renumber"
    spec = replay.spec()
    assert spec.pop("name") == "replay"
    assert Replay(**spec).trace.rows_equal(trace)


def test_needs_a_trace(tmp_path: Path):
    with pytest.raises(StrategyError, match="file of strategy 'replay' must name a saved trace; got None"):
        Replay().parts()
    with pytest.raises(DataError):
        Replay(file=tmp_path / "missing.safetensors").parts()


def test_edited_attention_is_not_replayed(trace: Trace, tmp_path: Path):
    trace.edits = True
    trace.save(tmp_path / "edited")
    for replay in (Replay.of(trace), Replay(file=tmp_path / "edited")):
        with pytest.raises(StrategyError, match="say all that the run did; got 'attention that was edited"):
            replay.parts()


@pytest.mark.parametrize("n_visual", [(5,), (3, 5), (5, 3, 3)])
def test_other_prompts_are_refused(trace: Trace, n_visual: tuple[int, ...]):
    for part in parts(trace):
        part.begin(PromptInfo((5, 3), SHAPE))
        with pytest.raises(StrategyError, match=r"must have \(5, 3\) visual tokens, as the trace; got"):
            part.begin(PromptInfo(n_visual, SHAPE))
        with pytest.raises(StrategyError, match="must have 4 decoder layers, as the trace; got 6"):
            part.begin(PromptInfo((5, 3), model_shape(n_layers=6)))


def test_tokens_that_are_gone_are_refused(trace: Trace):
    spatial, _ = parts(trace)
    site = layer_site((2, 3), boundary=1, ids=torch.tensor([[0, 2, -1], [0, 1, 2]]))
    with pytest.raises(StrategyError, match="keep tokens that are still there"):
        spatial.select(site, counts_tensor(3, 3))
