"""The weights that come with tokentrim: for the shipped model, whole, and better than nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tokentrim_strategies
from tokentrim.contracts.trained.trainable import Trainable
from tokentrim.contracts.trained.weights import read_weights
from tokentrim.loading import load_model
from tokentrim.plugins.loader import registry
from tokentrim.runs.cells import locate
from tokentrim.runs.specs import ModelSpec
from tokentrim.session import trim
from tokentrim.train.data import answered

FILES = sorted((Path(tokentrim_strategies.__file__).parent / "weights").glob("[!.]*.safetensors"))
COUNTS = [int(path.stem.rsplit("-", 1)[1]) for path in FILES if path.name.startswith("quecc")]


@pytest.fixture(scope="module")
def target():
    return locate(ModelSpec(model="testbed"))


@pytest.fixture(scope="module")
def questions():
    """(model, batch of colour questions of the calibration split)."""
    loaded = load_model("testbed")
    return loaded.model, answered(loaded, registry("task").get("color").samples("calibration", 12))


def test_there_are_some_for_every_trainable_strategy():
    strategies = registry("strategy")
    own = [entry.name for entry in strategies if strategies.get(entry.name).trainable]
    assert sorted({path.name.split("-")[0] for path in FILES}) == sorted(own)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_are_of_the_shipped_model_and_were_trained_apart_from_the_test_split(path: Path, target: Any):
    header, _ = read_weights(path)
    about = {key: value for key, value in header.model.items() if key != "sketch"}
    assert about == {"name": "testbed", "fingerprint": target.fingerprint}
    assert len(header.model["sketch"]) == 32
    assert header.provenance["command"].startswith("tokentrim train ")
    assert "never its test split" in header.provenance["split"]
    settings = {"tokens": header.made_for["tokens"]} if "tokens" in header.made_for else {}
    strategy: Trainable = registry("strategy").get(header.strategy)(**settings)
    assert strategy.file_for(target.shape) == path
    strategy.prepare(target.shape)


def _right(model: Any, batch: Any, spec: Any) -> float:
    """Share of colour questions whose answer, one token before the end, the model generates."""
    columns = batch.inputs["input_ids"].shape[1] - batch.labels.shape[1]
    prompts = {n: v[:, :columns] if n in ("input_ids", "attention_mask") else v for n, v in batch.inputs.items()}
    with torch.no_grad(), trim(model, spec):
        said = model.generate(**prompts, max_new_tokens=1, do_sample=False)[:, -1]
    return float((said == batch.labels[:, 0]).float().mean())


@pytest.mark.parametrize("tokens", COUNTS)
def test_a_few_tokens_that_know_the_question_beat_as_many_that_do_not(tokens: int, questions: Any):
    model, batch = questions
    found = _right(model, batch, {"name": "quecc", "tokens": tokens})
    assert found >= _right(model, batch, {"name": "pool", "keep_count": tokens})
    if tokens >= 16:
        assert found > 0.9


def test_routers_let_the_image_go_and_lose_nothing(questions: Any):
    model, batch = questions
    prompts = {name: value for name, value in batch.inputs.items() if name != "labels"}
    with torch.no_grad(), trim(model, "dyvte") as session:
        model(**prompts)
        share = session.report().layer_mean_ratio
    assert 0.3 < share < 0.9
    assert _right(model, batch, "dyvte") >= _right(model, batch, "none") - 0.1
