"""A continued conversation holds the very tokens of one that is asked anew, and says what it cannot continue."""

import pytest
import torch

import tokentrim
from tokentrim.config.specs import strategy_from
from tokentrim.errors import UnsupportedError
from tokentrim.loading import load_model
from tokentrim.plugins.loader import registry
from tokentrim.runs.dialogue import Dialogue, asks

ASKED = ("list all ?", "color of ring ?", "where is the red circle ?")


@pytest.fixture(scope="module", params=["testbed-plain", "testbed-qwen2.5-vl"])
def loaded(request):
    return load_model(request.param, "cpu")


@pytest.fixture(scope="module")
def pictures():
    return registry("task").get("where").samples("test", 1)[0].images


@pytest.mark.parametrize("limit", [48, 2])
def test_a_continued_conversation_holds_the_tokens_of_a_new_prompt(loaded, pictures, limit):
    """Whether the answers came to their end or were cut."""
    one, other = Dialogue(loaded, pictures, limit), Dialogue(loaded, pictures, limit, anew=True)
    with tokentrim.trim(loaded.model, "none") as session:
        for question in ASKED:
            assert torch.equal(one.inputs(question)["input_ids"], other.inputs(question)["input_ids"])
            assert one.ask(question) == other.ask(question)
        assert session.report().prompts == 1 + len(ASKED)


def test_what_was_dropped_stays_dropped(loaded, pictures):
    talk = Dialogue(loaded, pictures, 8)
    with tokentrim.trim(loaded.model, {"name": "fastv", "k": 1, "keep_ratio": 0.25}) as session:
        talk.ask(ASKED[0])
        kept = session.trace.kept(2).tolist()
        talk.ask(ASKED[1])
        assert session.trace.kept(2).tolist() == kept
        assert session.report().prompts == 1


def test_a_template_that_rewrites_earlier_turns_is_refused(pictures, monkeypatch):
    loaded = load_model("testbed-plain", "cpu")
    talk = Dialogue(loaded, pictures, 4)
    talk.ask(ASKED[0])
    template = "{% for m in messages %}{{ messages | length }} {{ m['role'] }} {% endfor %}"
    monkeypatch.setattr(loaded.processor, "chat_template", template)
    with pytest.raises(UnsupportedError, match="Ask each turn anew"):
        talk.inputs(ASKED[1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("st3", True), ("fastv", True), ("sparsevlm", True), ("vispruner", False), ("uniform", False), ("random", False)],
)
def test_which_strategies_keep_what_the_question_says(name, expected):
    assert asks(strategy_from(name).strategy) is expected
