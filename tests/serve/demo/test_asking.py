"""What the page asks of a model and shows of it, without the page."""

import html

import pytest

from tokentrim.config.specs import Budget, strategy_from
from tokentrim.errors import DataError, StrategyError
from tokentrim.plugins.loader import registry
from tokentrim.serve.demo import Asking, page, render
from tokentrim.testbed import BUSY
from tokentrim.testbed.busy.vocabulary import encode
from tokentrim.testbed.tasks import TASKS


@pytest.fixture(scope="module")
def asking(tmp_path_factory):
    from tokentrim.loading import load_model

    return Asking(load_model("testbed-plain"), "testbed-plain", strategy_from("{name: fastv, k: 1}"))


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    found = TASKS["list-all"].samples("test", 1)[0]
    file = tmp_path_factory.mktemp("picture") / "scene.png"
    found.images[0].save(file)
    return str(file), found.question


def test_every_strategy_is_offered_or_refused_with_its_reason(asking):
    assert {*asking.served, *asking.refused, "none"} == {*registry("strategy").names(), "fastv(k=1)"}
    assert "st3" in asking.served
    assert "evidence" in asking.refused["oracle"]
    assert "must name a saved trace" in asking.refused["replay"]
    assert asking.knob("st3") == "prune_ratio"
    assert asking.is_matched("st3")
    assert not asking.is_matched("text-only"), "it has no knob"
    assert not asking.is_matched("fastv(k=1)"), "it was given as it should be"
    assert asking.is_temporal("snapkv")
    assert not asking.is_temporal("st3")
    said = render.strategies(asking.served, asking.refused)
    assert html.escape(asking.refused["oracle"]) in said


def test_examples_are_of_the_pictures_and_in_the_words_that_a_model_knows(asking, monkeypatch):
    assert page._examples(asking)[0][1] == "list all ?"
    monkeypatch.setattr(asking, "name", BUSY)
    for picture, question in page._examples(asking):
        assert picture.size == (128, 128)
        assert encode(question)


def test_both_answers_with_what_was_kept_and_their_times(asking, sample):
    picture, question = sample
    first, last = asking.both(picture, question, "st3", Budget(layer_mean_ratio=0.5), 8, 2)
    assert not first.timed
    assert last.timed
    assert first.pruned.answer == last.pruned.answer
    assert last.unpruned.report.layer_mean_ratio == 1
    assert last.pruned.report.layer_mean_ratio == pytest.approx(0.5, abs=0.05)
    assert last.pruned.stages[-1][0] is None, "the temporal part was there"
    middle, least, most = last.pruned.first_token
    assert 0 < least <= middle <= most
    said = render.beside(last)
    assert said.count("<figure>") == len(last.pruned.stages)
    assert "median and range of 2 runs" in said
    assert "being taken" in render.beside(first)


def test_without_a_budget_a_strategy_is_as_it_was_given(asking, sample):
    (only, timed) = asking.both(*sample, "fastv(k=1)", None, 4, 0)
    assert only.pruned.stages[1][0] == 1
    assert "not taken" in render.beside(timed)


def test_what_cannot_be_asked_is_said(asking, sample, tmp_path):
    picture, question = sample
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    for file, text, words in ((None, question, "be about a picture"), (picture, "  ", "have words"),
                              (str(broken), question, "broken.png")):  # fmt: skip
        with pytest.raises(DataError, match=words):
            next(asking.both(file, text, "st3"))
    with pytest.raises(StrategyError, match="must be at least"):
        next(asking.both(picture, question, "fastv", Budget(layer_mean_ratio=0.05)))


def test_words_from_outside_are_escaped():
    outside = "<script>alert(1)</script>"
    said = render.wrong(ValueError(outside)) + render.head(outside) + render.strategies({outside: outside}, {})
    assert "<script" not in said
    assert said.count(html.escape(outside)) == 4
