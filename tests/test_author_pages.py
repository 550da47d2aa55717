"""The pages for authors of plugins: what the strategies and hooks on them do."""

import inspect
import re
from pathlib import Path

import pytest
import torch

import tokentrim
from tokentrim import hookspecs
from tokentrim.contracts.declared import wrong_in_strategy
from tokentrim.contracts.trained.trainable import Trainable
from tokentrim.counting.published import PRESETS
from tokentrim.testing import small_model

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def page():
    """Everything that the blocks of the page define, run from top to bottom as one module."""
    names = {"__name__": "page"}
    for block in blocks("write-a-strategy.md", "python"):
        exec(compile(block, "write-a-strategy.md", "exec"), names)
    return names


def strategies(page):
    found = [value for value in page.values() if inspect.isclass(value) and issubclass(value, tokentrim.Strategy)]
    return {found.name: found for found in found if not inspect.isabstract(found)}


def test_the_page_grows_from_narrow_to_trainable(page):
    assert list(strategies(page)) == ["feature-norm", "last-row", "runs", "fading", "learned-runs"]
    assert not [found.name for found in strategies(page).values() if wrong_in_strategy(found, {})]


def test_the_shortest_strategy_has_twelve_lines(page):
    block = next(block for block in blocks("write-a-strategy.md", "python") if "class FeatureNorm" in block)
    assert len([line for line in block[block.index("class ") :].splitlines() if line]) <= 12


def decided(strategy):
    """The small model's report under a strategy, after four new tokens for a batch with and without pictures."""
    subject = small_model()
    with tokentrim.trim(subject.model, strategy) as session, torch.no_grad():
        subject.model.generate(**subject.prompt(0, 1), max_new_tokens=4, do_sample=False)
    return session


@pytest.mark.parametrize("name", ["feature-norm", "last-row", "runs"])
def test_the_spatial_examples_keep_what_they_plan(page, name):
    strategy = strategies(page)[name](keep_ratio=0.25)
    n_visual = len(decided("none").trace.kept(0))
    assert len(decided(strategy).trace.kept(5)) == n_visual // 4
    assert tokentrim.plan(strategy, PRESETS["llava-1.5-7b"], 576).usage.layer_tokens[-1] == 144


def test_the_temporal_example_evicts(page):
    trace = decided(strategies(page)["fading"](half_life=1)).trace
    before = len(trace.kept(0))
    assert [len(trace.cached(0, step)) for step in (1, 2, 3)] == [before >> step for step in (1, 2, 3)]


def test_the_trainable_example_learns_through_its_weight(page, tmp_path):
    found = strategies(page)["learned-runs"]
    assert issubclass(found, Trainable)
    subject = small_model()
    strategy = found(weights=found().untrained(subject.layout.shape, tmp_path / "runs.safetensors"))
    assert len(decided(strategy).trace.kept(5)) == len(decided("none").trace.kept(0)) // 4
    module = strategy.fresh(subject.layout.shape, 0, {})
    with tokentrim.trim(subject.model, strategy.holding(module), record=False):
        subject.model(**subject.prompt(0)).logits.sum().backward()
    assert module.weight.grad.abs().sum() > 0
    subject.model.zero_grad()


def test_the_hook_of_the_page_registers(page):
    seen = []
    page["tokentrim_strategies"](lambda name, target, **tags: seen.append((name, tags["stage"])))
    assert seen == [("feature-norm", "prefill")]


def hooks():
    return {name: value for name, value in vars(hookspecs).items() if hasattr(value, "tokentrim_spec")}


def signatures(page):
    """Name -> signature of every function that a page gives the signature of, by a line ``def name(...) -> ...``."""
    found = {}
    for block in blocks(page, "python"):
        found |= dict(re.findall(r"^def (\w+)(\(.*\) -> .*): \.\.\.$", block, re.MULTILINE))
    return found


def test_every_hook_is_documented_with_its_exact_signature():
    documented = signatures("hooks.md")
    assert documented.pop("register") == str(inspect.signature(hookspecs.Register.__call__)).replace("'", "").replace(
        "(self, ", "("
    )
    assert documented == {name: str(inspect.signature(hook)).replace("'", "") for name, hook in hooks().items()}
