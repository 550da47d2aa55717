"""Inside vLLM: answers equal those of ``tokentrim.trim`` on the same weights. Minutes per model: ``make test-vllm``."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

MODELS = ("testbed", "testbed-llava-next", "testbed-qwen2.5-vl")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-vllm"),
]


@pytest.fixture(scope="module", params=MODELS)
def found(request, tmp_path_factory):
    """What one start of vLLM said, and what ``trim`` said before it."""
    out = tmp_path_factory.mktemp("vllm") / f"{request.param}.json"
    command = [sys.executable, str(Path(__file__).with_name("serve_family.py")), request.param, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads(out.read_text())


def test_answers_are_those_of_trim(found):
    differ = [(case["spec"], case["picture"]) for case in found["cases"] if case["served"] != case["expected"]]
    assert not differ
    assert len({json.dumps(case["served"]) for case in found["cases"]}) > 10  # pruning shows in answers


def test_prompts_are_as_short_as_planned(found):
    for case in found["cases"]:
        assert case["kept"] == case["planned"]
        assert case["length"] == case["text"] + case["planned"]
    kept = sum(case["planned"] for case in found["cases"])
    assert found["counted"] == [kept, sum(case["of"] for case in found["cases"]) - kept]


def test_caches_tell_budgets_apart(found):
    again = [case for case in found["cases"] if "again" in case]
    assert again
    assert all(case["again"] == case["expected"] for case in again)


def test_the_server_has_a_strategy_of_its_own(found):
    own = next(case for case in found["cases"] if case["spec"] == {"name": "divprune", "keep_ratio": 0.25})
    assert own["picture"] == 0
    assert found["default"] == found["after"] == own["expected"]


def test_every_picture_of_a_prompt_is_pruned_by_itself(found):
    if "expected" not in found["two"]:
        pytest.skip("no reference in transformers")
    assert found["two"]["served"] == found["two"]["expected"]


def test_mrope_positions_are_those_of_the_unpruned_model(found):
    for served, expected, steps, last in found.get("positions", ()):
        assert served == expected
        assert steps == [[last + number] * 3 for number in range(1, len(steps) + 1)]


def test_what_cannot_be_served_is_said_before_an_engine_starts(found):
    said = found["refused"]
    assert "must be a mapping with the key 'strategy'" in said["text"]
    assert "Did you mean 'divprune'" in said["unknown"]
    assert "Did you mean 'keep_ratio'" in said["key"]
    assert "act before the language model alone" in said["inside"]
    assert said["nothing"] != said["fits"]
    assert said["fits"][0].startswith("Tokentrim")


def test_bad_requests_are_answered_and_the_next_is_served(found):
    unknown, inside, none, file = found["bad"]
    assert "Did you mean 'divprune'" in unknown
    assert "act before the language model alone" in inside
    assert "keep a token of every picture at least" in none
    assert "must be a mapping with a registered name" in file
