"""Pictures and videos of Qwen-VL inside vLLM: answers and positions against ``tokentrim.trim``. ``make test-vllm``."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-vllm"),
]


@pytest.fixture(scope="module", params=("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"))
def found(request, tmp_path_factory):
    """What one start of vLLM said, and what ``trim`` said before it."""
    out = tmp_path_factory.mktemp("vllm") / f"{request.param}.json"
    command = [sys.executable, str(Path(__file__).with_name("serve_qwen.py")), request.param, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads(out.read_text())


def test_answers_are_those_of_trim(found):
    cases = found["cases"]
    assert not [(case["names"], case["spec"]) for case in cases if case["served"] != case["expected"]]
    assert len({json.dumps(case["served"]) for case in cases}) > len(cases) // 2  # pruning shows in answers
    again = [case for case in cases if "again" in case]
    assert all(case["again"] == case["expected"] for case in again)


def test_trim_as_it_is_says_the_same_of_clips_that_are_longer_in_space_than_in_time(found):
    for name, answers in found["plain"].items():
        half = [case for case in found["cases"] if case["names"] == [name] and case["spec"]["keep_ratio"] == 0.5]
        assert [case["served"] for case in half] == answers


def test_prompts_hold_what_stays(found):
    assert all(case["length"] == len(case["positions"][0]) for case in found["cases"])


def test_positions_are_those_of_the_unpruned_model(found):
    dumped = [case for case in found["cases"] if "entered" in case]
    assert {name for case in dumped for name in case["names"]} == {
        name for case in found["cases"] for name in case["names"]
    }
    for case in dumped:
        assert case["unpruned"] == case["by_vllm"]
        assert case["entered"] == case["positions"]
        last = max(map(max, case["unpruned"]))
        assert case["steps"] == [[last + number] * 3 for number in range(1, len(case["steps"]) + 1)]
