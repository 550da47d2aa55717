"""Inside lmms-eval: the installed model, its answers, costs and failures, on one process and on two."""

# pyright: reportMissingImports=false

from dataclasses import replace

import pytest

from tokentrim.runs.costs import Costs

pytestmark = [pytest.mark.lmms, pytest.mark.slow]

FASTV = "pretrained=testbed-plain,strategy={name: fastv, k: 2},budget=0.5,device=cpu"


@pytest.fixture(scope="module")
def finished(evaluate, tmp_path_factory):
    return evaluate(tmp_path_factory.mktemp("one") / "out", FASTV, "--batch_size", "4")


def right(found):
    (results,) = found.read("results.json")
    return results["results"]["local_where"]["right,none"]


def test_the_entry_point_registers_the_model():
    from lmms_eval.models import MODEL_REGISTRY_V2

    assert MODEL_REGISTRY_V2.resolve("tokentrim").model_type == "chat"
    assert MODEL_REGISTRY_V2.get_model_class("tokentrim").is_simple is False


def test_answers_are_those_of_a_comparison(finished):
    from tokentrim.harness.answering import Answerer, HarnessQuestion
    from tokentrim.harness.generation import generation_of
    from tokentrim.harness.options import read_options
    from tokentrim.loading import load_model, single_turn
    from tokentrim.tasks.messages import Conversation
    from tokentrim.testbed.tasks import TASKS

    assert finished.code == 0, finished.said
    loaded = load_model("testbed-plain", device="cpu")
    options = read_options({"pretrained": loaded, "strategy": {"name": "fastv", "k": 2}, "budget": 0.5})
    samples = TASKS["where"].samples("test", 6)
    asked = [
        HarnessQuestion(n, "x", Conversation(single_turn(s.question, 1), s.images), generation_of({}, 16))
        for n, s in enumerate(samples)
    ]
    wanted = [answer.text for answer in Answerer(loaded, options).answer(asked)]
    said = {line["doc_id"]: line["filtered_resps"] for line in finished.read("local_where.jsonl")}
    assert [said[n] for n in range(6)] == wanted
    assert right(finished) == pytest.approx(sum(w == s.answer for w, s in zip(wanted, samples, strict=True)) / 6)


def test_costs_stand_beside_the_results_and_in_them(finished):
    (costs,) = finished.read("tokentrim-costs.json")
    (results,) = finished.read("results.json")
    overall = costs["overall"]
    assert overall["questions"] == overall["pruning_due"] == 6
    assert overall["layer_mean_ratio"] == pytest.approx(0.5, abs=0.01)
    assert costs["budget"] == {"layer_mean_ratio": 0.5}
    assert costs["tasks"]["local_where"] == overall
    assert costs["versions"]["lmms_eval"]
    for name in ("layer_mean_ratio", "kv_mean_ratio", "flops_ratio", "pruning_events"):
        assert results["throughput"][f"avg_{name}"] == pytest.approx(overall[name])
    assert results["efficiency"]["overall"]["docs_with_token_counts"] == 6
    assert len({path.parent for path in finished.files}) == 1


def test_two_processes_give_what_one_gives(finished, evaluate, tmp_path):
    both = evaluate(tmp_path / "out", FASTV, "--batch_size", "2", "--limit", "5", processes=2)
    assert both.code == 0, both.said
    (costs,), lines = both.read("tokentrim-costs.json"), both.read("local_where.jsonl")
    assert (costs["processes"], costs["overall"]["questions"], len(lines)) == (2, 5, 5)
    alone = {line["doc_id"]: line["filtered_resps"] for line in finished.read("local_where.jsonl")}
    assert {line["doc_id"]: line["filtered_resps"] for line in lines} == {n: alone[n] for n in range(5)}


@pytest.mark.parametrize(
    ("arguments", "more", "code", "said"),
    [
        ("pretrained=testbed-plain,strategy=fastw", [], 2, "Did you mean 'fastv'"),
        ("pretrained=testbed-plain,strategy=fastv,budget=0.01", [], 1, "must be at least"),
        ("pretrained=testbed-plain,strategy=fastv", ["--gen_kwargs", "bogus=1"], 1, "bogus"),
    ],
)
def test_a_failure_ends_the_run_with_a_code_and_without_results(evaluate, tmp_path, arguments, more, code, said):
    found = evaluate(tmp_path / "out", arguments, *more)
    assert found.code == code
    assert said in found.said
    assert found.files == []


def test_a_failure_ends_every_process(evaluate, tmp_path):
    found = evaluate(tmp_path / "out", "pretrained=testbed-plain,strategy=fastv,budget=0.01", processes=2)
    assert found.code != 0
    assert found.files == []


def test_a_run_that_should_have_pruned_and_did_not_has_no_results(tasks_folder, home, monkeypatch, tmp_path):
    """The sessions' counter of pruning events is held at zero: what must notice is the end of the run."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from tokentrim.errors import EngineError
    from tokentrim.harness.lmms import Tokentrim
    from tokentrim.loading import load_model

    monkeypatch.setenv("HF_HOME", home["HF_HOME"])
    manager = TaskManager("WARNING", include_path=str(tasks_folder), include_defaults=False, model_name="tokentrim")
    arguments = {"pretrained": load_model("testbed-plain", device="cpu"), "strategy": "fastv", "batch_size": 3}
    costs = tmp_path / "costs.json"
    results = simple_evaluate(
        model=Tokentrim(**arguments, costs=str(costs)), tasks=["local_where"], task_manager=manager, limit=3
    )
    assert results["results"]["local_where"]["right,none"] >= 0
    assert costs.exists()

    lm = Tokentrim(**arguments)
    monkeypatch.setattr(Costs, "add", without_events(Costs.add))
    with pytest.raises(EngineError, match="no pruning event"):
        simple_evaluate(model=lm, tasks=["local_where"], task_manager=manager, limit=3)


def without_events(add):
    def blind(self, report, lengths, **options):
        add(self, replace(report, pruning_events=0), lengths, **options)

    return blind
