"""The recipe for lm-eval, as the page gives it, on a local task."""

import re
from pathlib import Path

import pytest

from tests.harness.local_task import write_task
from tokentrim.loading import load_model
from tokentrim.testbed.tasks import TASKS

pytestmark = [pytest.mark.lmms(needs="lm_eval"), pytest.mark.slow]

PAGE = Path(__file__).parents[2] / "docs" / "lmms-eval.md"
TASK = """
task: local_where
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {folder}/test.parquet
test_split: test
output_type: generate_until
doc_to_image: [image]
doc_to_text: "<image>{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
process_results: !function utils.process_results
generation_kwargs: {{until: [], do_sample: false, max_gen_toks: 16}}
metric_list:
  - {{metric: right, aggregation: mean, higher_is_better: true}}
"""

UTILS = """
def process_results(doc, results):
    return {"right": float(results[0].split() == doc["answer"].split())}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The page's code, with the local task instead of ChartQA and the smaller model."""
    write_task(tmp_path)
    (tmp_path / "local_where.yaml").unlink()
    (tmp_path / "utils.py").write_text(UTILS)
    (tmp_path / "lm_task.yaml").write_text(TASK.format(folder=tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "lm_eval " in block
    )
    manager = f"TaskManager(include_path={str(tmp_path)!r}, include_defaults=False)"
    for old, new in (
        ('"testbed"', '"testbed-plain", device="cpu"'),
        ('tasks=["chartqa"]', f'tasks=["local_where"], task_manager={manager}'),
        ("import tokentrim\n", "from lm_eval.tasks import TaskManager\nimport tokentrim\n"),
    ):
        assert old in code
        code = code.replace(old, new, 1)
    return code


def test_the_recipe_gives_the_answers_of_the_model_alone(recipe):
    space = {}
    exec(compile(recipe, "recipe", "exec"), space)
    report, found = space["report"], space["results"]
    assert (report.rows, report.pruning_events > 0) == (6, True)
    assert report.layer_mean_ratio < 0.9
    score = found["results"]["local_where"]["right,none"]

    from tokentrim.harness.answering import Answerer, HarnessQuestion
    from tokentrim.harness.generation import generation_of
    from tokentrim.harness.options import read_options
    from tokentrim.loading import single_turn
    from tokentrim.tasks.messages import Conversation

    samples = TASKS["where"].samples("test", 6)
    loaded = load_model("testbed-plain", device="cpu")
    answerer = Answerer(loaded, read_options({"pretrained": loaded, "strategy": "st3", "batch_size": 4}))
    asked = [
        HarnessQuestion(n, "x", Conversation(single_turn(s.question, 1), s.images), generation_of({}, 16))
        for n, s in enumerate(samples)
    ]
    answers = {answer.place: answer.text for answer in answerer.answer(asked)}
    assert score == pytest.approx(sum(answers[n] == sample.answer for n, sample in enumerate(samples)) / 6)
    said = {line["doc_id"]: line["filtered_resps"][0] for line in found["samples"]["local_where"]}
    assert said == answers
