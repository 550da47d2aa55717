"""Whatever a file says, it is read or refused by name: no other exception, no other exit code, no hang.

Files are right ones with a few changes that hypothesis draws, so that each comes close to being read.
"""

from __future__ import annotations

import copy
import json
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import save
from typer.testing import CliRunner

from tokentrim.cli import app
from tokentrim.config.schedule_file import read_schedule
from tokentrim.config.specs import strategy_from
from tokentrim.counting.forecast import plan
from tokentrim.engine.tokens.trace import Trace
from tokentrim.errors import TokentrimError
from tokentrim.loading import resolve_folder, shape_of
from tokentrim_strategies.replay import Replay

_SECONDS = 60  # that no file may take, on a machine that is busy
_VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 0.5, 1.5, -0.0, float("nan"), float("inf"), 10**6, 10**12, 10**30, -(2**63), "",
    "x", "1", "st3", "fastv", "testbed-plain", "float16", "llama", "a\x00b", "\u2028", "x" * 300, [], {}, [None], [[]],
    ["x"], [10**9, 10**9], {"name": "pool"}, {"model_type": "mamba"}, {"x": 1},
]  # fmt: skip
_LINES = ("- a\n", "a: 1\n", "a: 1\na: 2\n", "&a [*a]\n", "{<<: 1}\n", "\t", "!!int x\n", "? [a]\n", "--- \n", "\ufeff",
          "\0", "*b", "{", "]", "'", "%", "|", "true: 1\n", "- - - - ", "9" * 99)  # fmt: skip


def _places(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value below ``data``."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield (*at, key)
        yield from _places(value, (*at, key))


@st.composite
def changed(draw: st.DrawFn, bases: list[Any], names: list[str]) -> Any:
    """One of ``bases`` with one to three values replaced, taken out or added (under one of ``names``)."""
    data = copy.deepcopy(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(data))
        if not places:
            break
        *above, last = draw(st.sampled_from(places))
        inner = data
        for key in above:
            inner = inner[key]
        kind, value = draw(st.sampled_from("rrrrda")), copy.deepcopy(draw(st.sampled_from(_VALUES)))
        if kind == "d":
            del inner[last]
        elif kind == "a" and isinstance(inner, dict):
            inner[draw(st.sampled_from(names))] = value
        else:
            inner[last] = value
    return data


@contextmanager
def read_or_refused() -> Generator[None]:
    """Nothing but an error of ours, and that in time."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(_SECONDS)
    try:
        yield
    except TokentrimError:
        pass
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True, scope="module")
def imported() -> None:
    """What takes seconds to import is there before a file's time is taken."""
    shape_of("testbed")
    CliRunner().invoke(app, ["validate", "docs/examples/configs/compare-st3-calibration.yaml"])


def bounded(examples: int) -> Any:
    """The same examples every time."""
    every = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=every, database=None)


_FOLDERS = ("testbed-plain", "testbed-llava-next", "testbed-qwen2.5-vl")
_CONFIGS: list[Any] = [
    *(json.loads((resolve_folder(name) / "config.json").read_text()) for name in _FOLDERS),
    *({"model_type": name, "text_config": {}, "vision_config": {}} for name in ("llava_onevision", "qwen3_vl")),
]
_FIELDS = ["num_hidden_layers", "layer_types", "rope_parameters", "dtype", "patch_size", "image_size", "model_type",
           "sliding_window", "vision_aspect_ratio", "image_grid_pinpoints", "fullatt_block_indexes", "num_labels",
           "quantization_config", "_attn_implementation", "auto_map", "image_token_id", "head_dim"]  # fmt: skip


@given(config=changed(_CONFIGS, _FIELDS))
@bounded(40)
def test_the_config_of_a_model(tmp_path: Path, config: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with read_or_refused():
        shape = shape_of(tmp_path)
        plan(strategy_from("st3").strategy, shape, shape.usual_visual)


_RUNS: list[Any] = [
    {"strategy": {"name": "fastv", "k": 2, "keep_ratio": 0.5}, "model": "testbed-plain", "structure": "keep"},
    {"strategy": {"spatial": [{"name": "pvtp"}, "random"], "temporal": {"name": "vta"}, "budget": {"kv_ratio": 0.3}}},
    {"name": "layer-counts", "rates": {2: 0.5, 4: 0.25}, "query": "last", "made_for": {"layers": 6}},
    {"strategy": {"name": "replay", "file": "none.safetensors"}},
    {"name": "sgl", "guide": "self", "keep_ratio": 0.2},
    {"models": [{"model": "testbed-plain", "device": "cpu"}], "tasks": ["where", {"task": "color", "samples": 4}],
     "strategies": ["st3", {"strategy": "fastv", "label": "f", "match": "kv_ratio", "budgets": [0.5]}],
     "budgets": {"match": "layer_mean_ratio", "values": [0.5]}, "controls": ["random"], "seeds": [0, 1],
     "timing": {"repeats": 3}, "executor": {"name": "local"}, "samples": 4},
]  # fmt: skip
_KEYS = ["name", "strategy", "model", "budget", "spatial", "temporal", "k", "file", "weights", "label", "x", "timing"]


@given(data=changed(_RUNS, _KEYS), at=st.floats(0, 1), line=st.sampled_from((*[""] * 20, *_LINES)))
@bounded(25)
def test_a_configuration(tmp_path: Path, data: Any, at: float, line: str) -> None:
    file = tmp_path / "config.yaml"
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    place = int(at * len(text))
    file.write_text(text[:place] + line + text[place:], encoding="utf-8")
    with read_or_refused():
        result = CliRunner().invoke(app, ["validate", str(file)])
        if not isinstance(result.exception, SystemExit | None):
            raise result.exception
        assert result.exit_code in (0, 2)
        assert ("error: " in result.stderr) is (result.exit_code == 2)


_SCHEDULES: list[Any] = [
    {"format": 1, "method": "gsearch", "made_for": {"layers": 8, "hidden_size": 16, "heads": 2}, "query": "last",
     "rates": {2: 0.6, 4: 0.25}, "provenance": {"seed": 0}},
    {"format": 1, "method": "vtw", "counts": {8: 0}},
]  # fmt: skip


@given(data=changed(_SCHEDULES, ["rates", "counts", "x"]), at=st.floats(0, 1), line=st.sampled_from(("", "", *_LINES)))
@bounded(60)
def test_a_schedule(tmp_path: Path, data: Any, at: float, line: str) -> None:
    file = tmp_path / "schedule.yaml"
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    file.write_text(text[: int(at * len(text))] + line + text[int(at * len(text)) :], encoding="utf-8")
    for read in (read_schedule, lambda path: strategy_from({"name": "layer-counts", "file": str(path)})):
        with read_or_refused():
            read(file)


_ABOUT = {"n_visual": [4, 2], "n_layers": 4, "steps": 2, "exited": [], "exit_scores": []}
_SETS = {"prefill.0": [[0, 1, 2, 3], [0, 1, -1, -1]], "prefill.2": [[1, 3], [0, -1]], "evicted.3.1": [[3], [0]]}
_WHERE = ["prefill.1", "prefill.9", "evicted.0.1", "evicted.3", "evicted.3.9", "prefill.x", "", "evicted.9.1"]


@given(
    about=changed([{"about": _ABOUT}], ["n_visual", "evicts"]), sets=changed([_SETS], _WHERE),
    dtype=st.sampled_from((*[torch.int64] * 9, torch.int32, torch.float32, torch.bool)),
    damage=st.none() | st.tuples(st.integers(0, 900), st.integers(0, 255)),
)  # fmt: skip
@bounded(80)
def test_a_trace(tmp_path: Path, about: Any, sets: Any, dtype: torch.dtype, damage: tuple[int, int] | None) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name, value in sets.items():
        try:
            tensors[name] = torch.tensor(value).to(dtype)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            continue
    metadata = {"format": "tokentrim-trace-1", "about": json.dumps(about.get("about"))}
    content = bytearray(save(tensors, metadata=metadata))
    if damage is not None:
        content[damage[0] % len(content)] = damage[1]
    (tmp_path / "trace").write_bytes(content)
    with read_or_refused():
        assert Replay.of(Trace.load(tmp_path / "trace")).parts() is not None


@pytest.mark.parametrize("command", ["plan", "doctor", "run"])
def test_commands_refuse_a_config_alike(command: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**_CONFIGS[0], "text_config": {"model_type": "x"}}))
    words = {"plan": ["-s", "st3"], "run": ["-s", "st3", "-i", "docs/examples/scene.png", "-p", "x"]}.get(command, [])
    result = CliRunner().invoke(app, [command, "--model", str(tmp_path), *words])
    assert result.exit_code == 2
    assert f"the model's {tmp_path / 'config.json'} must describe a model" in result.stderr
