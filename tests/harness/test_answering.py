"""Answering: the same answers as the model alone, in any batch; costs that are those of the plan; failures raised."""

import pytest

from tokentrim.counting.forecast import plan
from tokentrim.errors import EngineError, StrategyError
from tokentrim.harness.answering import Answerer, HarnessQuestion, require_pruning
from tokentrim.harness.costs_file import costs_data, write_costs
from tokentrim.harness.generation import generation_of
from tokentrim.harness.options import read_options
from tokentrim.loading import load_model
from tokentrim.runs.batches import make_batch, model_inputs
from tokentrim.runs.costs import Costs, together, total
from tokentrim.session import trim
from tokentrim.tasks.messages import Conversation, conversation_of
from tokentrim.testbed.tasks import TASKS

SAMPLES = TASKS["where"].samples("test", 4)


@pytest.fixture(scope="module")
def loaded():
    return load_model("testbed-plain", device="cpu")


def answerer(loaded, **arguments):
    return Answerer(loaded, read_options({"pretrained": loaded, "strategy": "none", **arguments}))


def messages(sample):
    content = [{"type": "image", "url": picture} for picture in sample.images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": sample.question}]}]


def questions(samples=SAMPLES, task="where", **settings):
    generation = generation_of({"max_new_tokens": 16, **settings}, 16)
    return [HarnessQuestion(n, task, conversation_of(messages(s), "task"), generation) for n, s in enumerate(samples)]


def texts(answers):
    return [answer.text for answer in sorted(answers, key=lambda answer: answer.place)]


def alone(loaded, strategy, sample):
    inputs = model_inputs(loaded, make_batch(loaded, [sample], [0]))
    with trim(loaded.model, strategy):
        output = loaded.model.generate(**inputs, max_new_tokens=16, do_sample=False)
    return loaded.processor.tokenizer.decode(
        output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    ).strip()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_are_those_of_generate_in_any_batch(loaded, batch_size):
    spec = {"name": "fastv", "k": 2, "keep_ratio": 0.25}
    found = answerer(loaded, strategy=spec, batch_size=batch_size)
    assert texts(found.answer(questions())) == [alone(loaded, spec, sample) for sample in SAMPLES]


def test_costs_are_those_of_the_plan(loaded):
    found = answerer(loaded, strategy={"name": "fastv", "k": 2, "keep_ratio": 0.25}, batch_size=4)
    answers = list(found.answer(questions()))
    figures = found.costs["where"].figures()
    n_text = round(sum(answer.prompt_tokens for answer in answers) / 4) - 100
    planned = plan(found.options.chosen.strategy, found.shape, 100, n_text, 3).usage
    assert figures["layer_mean_tokens"] == planned.layer_mean_tokens
    assert figures["kv_end_ratio"] == pytest.approx(planned.kv_end_ratio)
    assert (figures["questions"], figures["n_visual"], figures["pruning_due"]) == (4, 100, 4)
    assert figures["pruning_events"] > 0
    assert figures["new_tokens"] == sum(answer.new_tokens for answer in answers) / 4


def test_a_budget_is_solved_and_realised(loaded):
    found = answerer(loaded, strategy="fastv", budget=0.5, batch_size=2)
    list(found.answer(questions()))
    assert found.costs["where"].figures()["layer_mean_ratio"] == pytest.approx(0.5, abs=0.01)
    assert [n for n, _ in found.solved] == [100]


def test_a_budget_out_of_reach_fails_the_run(loaded):
    with pytest.raises(StrategyError, match="must be at least"):
        list(answerer(loaded, strategy="fastv", budget=0.01).answer(questions()))


def test_what_generate_refuses_fails_the_run(loaded):
    with pytest.raises(ValueError, match="bogus"):
        list(answerer(loaded).answer(questions(bogus=1)))


def test_an_answer_ends_at_a_stop_text_and_is_charged_up_to_there(loaded):
    whole = texts(answerer(loaded).answer(questions()))
    first, second = whole[0].split()[:2]
    found = answerer(loaded, batch_size=4)
    cut = list(found.answer(questions(until=[second])))
    assert texts(cut)[0] == first
    assert cut[0].new_tokens == 2
    assert all(second not in text for text in texts(cut))


def test_beams_and_sampling_reach_generate(loaded):
    beams = texts(answerer(loaded, batch_size=2).answer(questions(num_beams=2)))
    assert beams == texts(answerer(loaded).answer(questions()))
    sampled = [texts(answerer(loaded).answer(questions(SAMPLES[:1], temperature=50.0))) for _ in range(3)]
    assert len({text for (text,) in sampled}) > 1


def test_prompts_without_images_are_answered_and_are_in_no_ratio(loaded):
    bare = Conversation(({"role": "user", "content": [{"type": "text", "text": "count all ?"}]},), ())
    mixed = [*questions(SAMPLES[:1]), HarnessQuestion(1, "where", bare, questions()[0].generation)]
    found = answerer(loaded, strategy="fastv", budget=0.5, batch_size=2)
    assert len(list(found.answer(mixed))) == 2
    figures = found.costs["where"].figures()
    assert (figures["questions"], figures["without_images"], figures["pruning_due"]) == (2, 1, 1)
    assert figures["layer_mean_ratio"] == pytest.approx(0.5, abs=0.01)


def test_copies_that_fill_up_a_process_are_answered_and_not_counted(loaded):
    found = answerer(loaded)
    assert len(list(found.answer(questions(SAMPLES[:2], task="")))) == 2
    assert found.costs == {}


def test_costs_of_processes_add_up(loaded, tmp_path):
    whole = answerer(loaded, strategy="fastv", budget=0.5)
    list(whole.answer(questions()))
    halves = []
    for samples in (SAMPLES[:3], SAMPLES[3:]):
        half = answerer(loaded, strategy="fastv", budget=0.5)
        list(half.answer(questions(samples)))
        halves.append(half.costs)
    found, wanted = total(together(halves).values()).figures(), whole.costs["where"].figures()
    untimed = [name for name in wanted if "seconds" not in name]
    assert {name: found[name] for name in untimed} == pytest.approx({name: wanted[name] for name in untimed})
    path = tmp_path / "new" / "costs.json"
    write_costs(path, costs_data(whole, together(halves), 2))
    assert path.read_text().startswith("{")


def test_a_run_in_which_nothing_was_pruned_though_it_should_is_no_run():
    require_pruning(Costs(questions=3, due=0, pruning_events=0))
    require_pruning(Costs(questions=3, due=3, pruning_events=1))
    with pytest.raises(EngineError, match="prune.*3 questions"):
        require_pruning(Costs(questions=3, due=3, pruning_events=0))


def test_no_question_at_all_has_no_means():
    figures = Costs().figures()
    assert figures["questions"] == 0
    assert figures["layer_mean_ratio"] is None
    assert figures["new_tokens"] is None
