"""The weights that come with tokentrim: for the shipped model, whole, and better than nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tokentrim_strategies
from tokentrim.compare.cells import locate
from tokentrim.compare.config import ModelSpec
from tokentrim.loading import load_model
from tokentrim.plugins import registry
from tokentrim.session import trim
from tokentrim.train.answering import answer_logits, per_sample
from tokentrim.train.data import answered
from tokentrim.trainable import Trainable
from tokentrim.weights import read_weights

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
    assert header.model == {"name": "testbed", "fingerprint": target.fingerprint}
    assert header.provenance["command"].startswith("tokentrim train ")
    assert "never its test split" in header.provenance["split"]
    settings = {"tokens": header.made_for["tokens"]} if "tokens" in header.made_for else {}
    strategy: Trainable = registry("strategy").get(header.strategy)(**settings)
    assert strategy.file_for(target.shape) == path
    strategy.prepare(target.shape)


def _right(model: Any, batch: Any, spec: Any) -> float:
    with torch.no_grad(), trim(model, spec):
        return float(per_sample(answer_logits(model, batch), batch.labels)[1].float().mean())


@pytest.mark.parametrize("tokens", COUNTS)
def test_a_few_tokens_that_know_the_question_beat_as_many_that_do_not(tokens: int, questions: Any):
    model, batch = questions
    assert _right(model, batch, {"name": "quecc", "tokens": tokens}) > 0.6
    if tokens < 16:
        assert _right(model, batch, {"name": "pool", "keep_count": tokens}) < 0.5


def test_routers_let_the_image_go_and_lose_nothing(questions: Any):
    model, batch = questions
    prompts = {name: value for name, value in batch.inputs.items() if name != "labels"}
    with torch.no_grad(), trim(model, "dyvte") as session:
        model(**prompts)
        share = session.report().layer_mean_ratio
    assert 0.3 < share < 0.9
    assert _right(model, batch, "dyvte") >= _right(model, batch, "none") - 0.1
