"""A trace says what a run did: what no run can do is refused when its file is read."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from tokentrim.engine.tokens.trace import Trace
from tokentrim.errors import DataError

ABOUT = {"n_visual": [5, 3], "n_layers": 4, "steps": 3}
SETS = {
    "prefill.0": [[0, 1, 2, 3, 4], [0, 1, 2, -1, -1]],
    "prefill.2": [[0, 2, 4], [1, 2, -1]],
    "evicted.3.1": [[4, 0], [1, -1]],
    "evicted.3.3": [[4, 2], [-1, -1]],
    "evicted.0.2": [[3], [2]],
}


def written(path, about=None, sets=None, metadata=None):
    """A trace's file, with changes; None takes something out."""
    tensors = {
        name: value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for name, value in {**SETS, **(sets or {})}.items()
        if value is not None
    }
    said = {name: value for name, value in {**ABOUT, **(about or {})}.items() if value is not None}
    told = {"format": "tokentrim-trace-1", "about": json.dumps(said), **(metadata or {})}
    save_file(tensors, path, metadata={name: value for name, value in told.items() if value is not None})
    return path


def test_what_a_run_did_is_read_back(tmp_path):
    trace = Trace.load(written(tmp_path / "t"))
    assert (trace.n_visual, trace.n_layers, trace.steps) == ((5, 3), 4, 3)
    assert trace.kept(1, 1).tolist() == [0, 1, 2]
    assert [trace.cached(3, step).tolist() for step in range(4)] == [[0, 2, 4], [0, 4], [0, 4], [2, 4]]
    trace.save(tmp_path / "again")
    assert trace.rows_equal(Trace.load(tmp_path / "again"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": {"prefill.2": [[0, 2, 5], [1, 2, -1]]}}, "tokens that the prompt has"),
        ({"sets": {"prefill.2": [[0, 2, 4], [1, 3, -1]]}}, "tokens that the prompt has"),
        ({"sets": {"prefill.2": [[0, 2, 2], [1, 2, -1]]}}, "each once"),
        ({"sets": {"prefill.2": [[0, 2, 4], [1, 2, -2]]}}, "tokens that the prompt has"),
        ({"sets": {"prefill.3": [[1, 2, 4], [1, 2, -1]]}}, "the layers before kept"),
        ({"sets": {"evicted.3.3": [[1], [1]]}}, "hold tokens in layer 3"),
        ({"sets": {"evicted.3.3": [[4, 4], [1, -1]]}}, "hold tokens in layer 3"),
        ({"sets": {"prefill.2": torch.tensor([[0.0, 2, 4], [1, 2, -1]])}}, "as int64"),
        ({"sets": {"evicted.0.2": torch.tensor([[3], [2]], dtype=torch.int32)}}, "as int64"),
        ({"sets": {"prefill.2": [0, 2]}}, "as int64"),
        ({"sets": {"prefill.2": torch.tensor(3)}}, "as int64"),
        ({"sets": {"prefill.2": [[0, 2, 4]]}}, "as int64"),
        ({"sets": {"prefill.0": None}}, "from layer 0 on"),
        ({"sets": dict.fromkeys(SETS)}, "from layer 0 on"),
        ({"sets": {"prefill.4": [[0], [1]]}}, "from layer 0 on"),
        ({"sets": {"prefill.02": [[0], [1]]}}, "once each"),
        ({"sets": {"evicted.4.1": [[0], [1]]}}, "evict in its 4 layers"),
        ({"sets": {"evicted.-1.1": [[0], [1]]}}, "evict in its 4 layers"),
        ({"sets": {"evicted.3.5": [[0], [1]]}}, "evict at its own steps"),
        ({"sets": {"evicted.3.0": [[0], [1]]}}, "evict at its own steps"),
        ({"sets": {"evicted.3": [[0], [1]]}}, "evict at its own steps"),
        ({"sets": {"evicted.3.1.1": [[0], [1]]}}, "say what it records"),
        ({"sets": {"prefill": [[0], [1]]}}, "say what it records"),
        ({"sets": {"prefill.1.1": [[0], [1]]}}, "say what it records"),
        ({"sets": {"kept.1": [[0], [1]]}}, "say what it records"),
        ({"about": {"n_visual": None}}, "say what it records"),
        ({"about": {"n_visual": 5}}, "say what it records"),
        ({"about": {"n_visual": []}}, "count its visual tokens"),
        ({"about": {"n_visual": [5, 3.0]}}, "count its visual tokens"),
        ({"about": {"n_visual": [5, True]}}, "count its visual tokens"),
        ({"about": {"n_visual": [5, 10**30]}}, "count its visual tokens"),
        ({"about": {"n_visual": [5, -1]}}, "count its visual tokens"),
        ({"about": {"n_visual": [5]}}, "as int64"),
        ({"about": {"n_layers": 10**12}}, "1..10000 layers"),
        ({"about": {"n_layers": "4"}}, "1..10000 layers"),
        ({"about": {"steps": -1}}, "count its visual tokens"),
        ({"about": {"steps": None}}, "say what it records"),
        ({"about": {"exited": [2], "exit_scores": [0.5, 0.5]}}, "name rows"),
        ({"about": {"exited": ["0"], "exit_scores": [0.5, 0.5]}}, "name rows"),
        ({"about": {"exit_scores": [0.5]}}, "one exit score per row"),
        ({"about": {"exit_scores": ["x", 0.5]}}, "one exit score per row"),
        ({"metadata": {"about": None}}, "say what it records"),
        ({"metadata": {"about": "{"}}, "say what it records"),
        ({"metadata": {"about": "[" * 5000}}, "say what it records"),
        ({"metadata": {"about": "[]"}}, "say what it records"),
        ({"metadata": {"format": "2"}}, "have the format"),
    ],
)
def test_what_no_run_does_is_refused(change, message, tmp_path):
    path = written(tmp_path / "t", **change)
    with pytest.raises(DataError, match=f"trace file .*{message}"):
        Trace.load(path)


def test_a_file_that_is_none_is_refused(tmp_path):
    whole = written(tmp_path / "t").read_bytes()
    os.mkfifo(tmp_path / "pipe")
    for name, content in {"half": whole[:-8], "head": whole[:6], "huge": b"\xff" * 16, "none": b""}.items():
        (tmp_path / name).write_bytes(content)
    for name in ("half", "head", "huge", "none", "pipe", "missing", "x" * 300, "a\0b", "."):
        with pytest.raises(DataError, match="be readable safetensors"):
            Trace.load(tmp_path / name)
