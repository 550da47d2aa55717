"""Training: it learns, it goes on where it stopped, it says where weights come from, and it refuses what is wrong."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tokentrim.contracts.tasks import Sample, Task
from tokentrim.contracts.trained.sketch import difference, is_same, sketch_of
from tokentrim.contracts.trained.weights import read_weights
from tokentrim.errors import ConfigError, PluginError, ResultsError, StrategyError, TokentrimError, UnknownNameError
from tokentrim.loading import load_model
from tokentrim.plugins.loader import registry
from tokentrim.progress import Silent
from tokentrim.session import located, trim
from tokentrim.train import runner
from tokentrim.train.answering import answer_logits, per_sample
from tokentrim.train.data import IGNORE, Rounds, answered, step_rng
from tokentrim.train.runner import options_of, run, trainable, trainer_of
from tokentrim.train.trainer import TrainOptions

SMALL: dict[str, Any] = {"model": "testbed-plain", "tasks": ["where", "what"], "batch_size": 4, "steps": 4}
STRATEGIES = ["quecc", "dyvte"]


@pytest.fixture(scope="module")
def loaded():
    found = load_model("testbed-plain")
    found.model.requires_grad_(False)
    return found


def trainer_for(name: str, **more: Any):
    strategy = trainable(name)
    kind = trainer_of(strategy)
    options = options_of(kind, {**SMALL, **more}, name)
    return kind(strategy, registry("adapter").get("llava")().shape(load_config()), options)


def load_config():
    from transformers import AutoConfig

    from tokentrim.testbed import model_folder

    return AutoConfig.from_pretrained(model_folder("testbed-plain"))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_few_steps_lower_the_loss(name: str, loaded: Any):
    trainer = trainer_for(name)
    batch = answered(loaded, Rounds(("where",), 8, 0).samples(0))
    optimizer = torch.optim.AdamW(trainer.module.parameters(), lr=3e-3)
    before = [value.clone() for value in loaded.model.state_dict().values()]
    losses: list[float] = []
    for _ in range(8):
        loss, figures = trainer.loss(loaded.model, batch, step_rng(0, 0))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        assert figures["loss"] == losses[-1]
    assert losses[-1] < 0.9 * losses[0]
    after = loaded.model.state_dict().values()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_batch_says_what_the_model_is_asked_and_should_say(loaded: Any):
    samples = [*registry("task").get("where").samples("calibration", 2), *registry("task").get("list-all").samples(
        "calibration", 1)]  # fmt: skip
    batch = answered(loaded, samples)
    decode = loaded.processor.tokenizer.decode
    for row, sample in enumerate(samples):
        labels = batch.labels[row][batch.labels[row] != IGNORE]
        assert decode(labels, skip_special_tokens=True).split() == sample.answer.split()
        assert int(labels[-1]) == loaded.model.generation_config.eos_token_id
        assert len(labels) == int(batch.n_answer[row])
        real = batch.inputs["input_ids"][row][batch.inputs["attention_mask"][row].bool()]
        assert torch.equal(real[-len(labels) :], labels)
        single = answered(loaded, [sample])
        with torch.no_grad(), trim(loaded.model, "none"):
            together = answer_logits(loaded.model, batch)[row, -len(labels) :]
            alone = answer_logits(loaded.model, single)[0]
        assert torch.allclose(together, alone, atol=1e-3)


def test_losses_count_answer_tokens_alone():
    logits = torch.zeros(2, 3, 4)
    logits[0, 2, 1] = 50.0
    labels = torch.tensor([[IGNORE, IGNORE, 1], [IGNORE, 2, 3]])
    losses, right = per_sample(logits, labels)
    assert losses.tolist() == pytest.approx([0.0, float(np.log(4))], abs=1e-6)
    assert right.tolist() == [True, False]


# ---------------------------------------------------------------------- samples


def _pictures(samples: Any) -> set[str]:
    return {hashlib.sha256(sample.images[0].tobytes()).hexdigest() for sample in samples}


def test_training_scenes_are_in_no_split():
    task = registry("task").get("where")
    training = _pictures([sample for number in range(3) for sample in task.training(number)])
    assert len(training) > 80
    assert not training & _pictures(task.samples("calibration", 64))
    assert not training & _pictures(task.samples("test", 64))


class _Fixed(Task):
    """A task whose samples are what they are."""

    name = "fixed"
    metric = "exact"
    max_new_tokens = 2
    description = "fixed"

    def samples(self, split: Any, n: int) -> list[Sample]:
        return [Sample(f"fixed/{split}/{i}", (), "", "") for i in range(min(n, 70))]

    def score(self, sample: Sample, prediction: str) -> float:
        return 0.0


def test_a_task_without_training_samples_gives_its_calibration_split():
    found = [{sample.id for sample in _Fixed().training(number)} for number in range(3)]
    assert found[0] | found[1] == {f"fixed/calibration/{i}" for i in range(70)}
    assert not found[0] & found[1]
    assert found[2] == found[0]


def test_rounds_are_a_function_of_step_and_seed():
    first, again = Rounds(("where", "list-all"), 8, 0), Rounds(("where", "list-all"), 8, 0)
    assert first.steps == 8
    for step in (9, 3, 0):
        assert [s.question for s in first.samples(step)] == [s.question for s in again.samples(step)]
    assert [s.question for s in Rounds(("where",), 8, 1).samples(0)] != [
        s.question for s in Rounds(("where",), 8, 0).samples(0)
    ]
    lengths = [[len(s.answer.split()) for s in first.samples(step)] for step in range(8)]
    assert sum(max(batch) - min(batch) > 20 for batch in lengths) <= 1


def test_the_learning_rate_rises_stays_and_falls():
    options = TrainOptions(tasks=("where",), steps=100, warm_up=9, learning_rate=1.0)
    rates = [options.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:80] == [1.0] * 71
    assert rates[90] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.1


# ---------------------------------------------------------------------- whole trainings


class _Stop(Silent):
    """Ends a training from outside after some steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, text: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_stopped_training_ends_with_the_same_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = run(name, tmp_path / "whole.safetensors", SMALL)
    monkeypatch.setattr(runner, "_SAVE_EVERY", -1.0)
    out = tmp_path / "parts.safetensors"
    for after in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run(name, out, SMALL, progress=_Stop(after))
        assert not out.exists()
    parts = run(name, out, SMALL)
    (first, expected), (second, found) = read_weights(whole.path), read_weights(parts.path)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    a, b = ({**header.provenance, "command": ""} for header in (first, second))
    assert a == b
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    told: list[str] = []
    teller = Silent()
    monkeypatch.setattr(teller, "say", told.append)
    assert run(name, out, SMALL, progress=teller).header == second
    assert told == [f"{out} is finished already"]


def test_weights_say_where_they_come_from_and_run(tmp_path: Path, loaded: Any):
    out = tmp_path / "four.safetensors"
    done = run({"name": "quecc", "tokens": 4}, out, {**SMALL, "steps": 2}, command=["tokentrim", "train", "quecc"])
    header = done.header
    assert dict(header.made_for) == {"layers": 6, "hidden_size": 128, "heads": 4, "tokens": 4}
    assert header.model["name"] == "testbed-plain"
    assert header.provenance["command"] == "tokentrim train quecc"
    assert header.provenance["options"]["tasks"] == ["where", "what"]
    assert "torch" in header.provenance["versions"]
    assert set(header.provenance["result"]["running_means_at_end"]) == {"loss", "right"}
    batch = answered(loaded, registry("task").get("where").samples("calibration", 2))
    with torch.no_grad(), trim(loaded.model, done.strategy) as session:
        loaded.model(**batch.inputs)
        assert session.report().tokens_per_layer == [4.0] * 6


def test_more_steps_may_be_asked_for_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runner, "_SAVE_EVERY", -1.0)
    out = tmp_path / "w.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run("quecc", out, SMALL, progress=_Stop(3))
    with pytest.raises(ResultsError, match="differs in seed"):
        run("quecc", out, {**SMALL, "seed": 1})
    with pytest.raises(ResultsError, match="differs in strategy"):
        run({"name": "quecc", "tokens": 1}, out, SMALL)
    with pytest.raises(ResultsError, match="steps of the training .* must be at least 2"):
        run("quecc", out, {**SMALL, "steps": 1})
    done = run("quecc", out, {**SMALL, "steps": 5})
    assert done.header.provenance["result"]["steps_asked_from"] == {"4": 0, "5": 2}
    with pytest.raises(ResultsError, match="be of this training"):
        run("quecc", out, {**SMALL, "seed": 1})
    with pytest.raises(ResultsError, match="be of this training"):
        run("quecc", out, {**SMALL, "steps": 6})
    other = tmp_path / "other.safetensors"
    other.write_text("mine")
    with pytest.raises(ResultsError, match="be a new file"):
        run("quecc", other, SMALL)
    state = tmp_path / ".x.safetensors.train.safetensors"
    state.write_bytes(b"torn")
    with pytest.raises(ResultsError, match="be what tokentrim wrote there"):
        run("quecc", tmp_path / "x.safetensors", SMALL)


def test_a_training_may_start_from_weights(tmp_path: Path):
    first = run("dyvte", tmp_path / "first.safetensors", {**SMALL, "steps": 1})
    second = run("dyvte", tmp_path / "second.safetensors", {**SMALL, "steps": 1, "start": first.path, "warm_up": 10**9})
    before, after = read_weights(first.path)[1], read_weights(second.path)[1]
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)
    assert second.header.provenance["options"]["start"] == str(first.path)
    with pytest.raises(StrategyError, match="have the sizes that the options ask for"):
        run("dyvte", tmp_path / "third.safetensors", {**SMALL, "start": first.path, "width": 3})
    with pytest.raises(StrategyError, match="be there"):
        run("dyvte", tmp_path / "third.safetensors", {**SMALL, "start": tmp_path / "none.safetensors"})


@pytest.mark.parametrize(
    ("strategy", "options", "error", "match"),
    [
        ("fastv", {}, StrategyError, "be one of .*dyvte.*quecc"),
        ({"name": "quecc", "budget": {"kv_ratio": 0.1}}, {}, StrategyError, "without a budget"),
        ("quecc", {"stepps": 3}, ConfigError, "stepps.*steps"),
        ("quecc", {"steps": 0}, ConfigError, "steps.*at least 1"),
        ("quecc", {"width": 3}, ConfigError, "width"),
        ("quecc", {"tasks": ["wehre"]}, UnknownNameError, "where"),
        ("quecc", {"model": "testbedd"}, UnknownNameError, "testbed"),
    ],
)
def test_bad_input_is_refused(strategy: Any, options: dict[str, Any], error: type[TokentrimError], match: str,
                              tmp_path: Path):  # fmt: skip
    with pytest.raises(error, match=match):
        run(strategy, tmp_path / "w.safetensors", options)
    assert not list(tmp_path.iterdir())


def test_a_strategy_must_name_a_trainer(monkeypatch: pytest.MonkeyPatch):
    strategy = trainable("quecc")
    monkeypatch.setattr(type(strategy), "trainer", "nowhere:Nobody")
    with pytest.raises(PluginError, match="trainer of strategy 'quecc'"):
        trainer_of(strategy)


def test_weights_of_another_model_of_the_same_sizes_are_refused(tmp_path: Path):
    model = load_model("testbed").model
    spec = {"name": "quecc", "tokens": 16}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        trim(copy.deepcopy(model).to(dtype), spec)  # itself, rounded
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.model.language_model.parameters():
            parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(StrategyError, match=r"be the one that they were trained on, testbed .*any_model: true"):
        trim(other, spec)
    with trim(other, {**spec, "any_model": True}):
        pass
    untrained = registry("strategy").get("quecc")(tokens=16)
    file = untrained.untrained(located(model)[1].shape, tmp_path / "untrained.safetensors")
    with trim(other, {**spec, "weights": file}):
        pass


def test_a_model_of_which_too_little_is_there_cannot_be_told(tmp_path: Path):
    model = load_model("testbed").model.to("meta")
    with pytest.raises(StrategyError, match="too few of the sketched weights are there to tell"):
        trim(model, {"name": "quecc", "tokens": 16})


def test_a_sketch_is_read_through_the_names_that_adapters_change():
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(20)))
    before = sketch_of(model)
    assert len(before) == 32
    assert all(len(values) == 4 for values in before.values())
    assert difference(before, model) == pytest.approx(0, abs=1e-5)
    renamed = nn.Sequential(*(nn.Sequential(layer) if index % 2 else layer for index, layer in enumerate(model)))
    assert is_same(difference(before, renamed))
    assert difference(before, nn.Sequential(nn.Linear(3, 3))) is None
    assert difference({"0.weight": [1.0]}, model) == 1.0


def test_quecc_starts_with_a_question_as_long_as_a_picture_token(loaded: Any):
    trainer, told = trainer_for("quecc"), trainer_for("quecc", question_gain=3.0)
    batch = answered(loaded, Rounds(("where",), 4, 0).samples(0))
    seen: list[Any] = []
    handle = trainer.module.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    trainer.begin(loaded.model, batch)
    handle.remove()
    length = float(seen[0].float().square().mean().sqrt())
    assert trainer.module.question.norm.weight.tolist() == pytest.approx([length] * 128, rel=1e-4)
    told.begin(loaded.model, batch)
    assert told.module.question.norm.weight.tolist() == [3.0] * 128


def test_quecc_learns_its_last_map_faster(loaded: Any):
    trainer = trainer_for("quecc", output_rate=7.0)
    plain, last = trainer.groups()
    assert (plain.scale, last.scale) == (1.0, 7.0)
    assert [tuple(one.shape) for one in last.parameters] == [(128, 128), (128,)]
    assert len(plain.parameters) + len(last.parameters) == len(list(trainer.module.parameters()))
