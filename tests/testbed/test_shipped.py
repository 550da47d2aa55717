"""The shipped models load with plain transformers, read prompts as they should, and answer."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from tokentrim.testbed import BUSY, MODELS, model_folder, whole_question
from tokentrim.testbed.busy.tasks import TASKS as BUSY_TASKS
from tokentrim.testbed.scenes import Canvas
from tokentrim.testbed.tasks import TASKS, TASKS_SIZES, resized
from tokentrim.testbed.training import check
from tokentrim.testbed.training.checkpoint import Checkpoint, TrainingProgress
from tokentrim.testbed.training.evaluate import kept_tokens, mean_score, mean_scores, oracle, predictions, random_order
from tokentrim.testbed.training.export import export, main as export_main
from tokentrim.testbed.training.families import family_of
from tokentrim.testbed.training.family import LLAVA
from tokentrim.testbed.training.model import build_model, pixel_values
from tokentrim.testbed.training.processors import build_processor
from tokentrim.testbed.vocabulary import ASSISTANT, BEGIN, IDS, IMAGE

models = pytest.mark.parametrize("name", MODELS)
PLAIN = tuple(name for name in MODELS if name != BUSY)  # of plain scenes
ADAPTED = tuple(name for name in PLAIN if name != "testbed-plain")  # trained with missing tokens
BUSY_FOR = {"where": "busy-where", "at": "busy-there", "list-where": "busy-describe"}


@pytest.fixture(scope="module")
def shipped():
    return {name: AutoModelForImageTextToText.from_pretrained(model_folder(name)).eval() for name in MODELS}


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(model_folder())


def message(sample):
    content = [{"type": "image", "image": sample.images[0]}, {"type": "text", "text": sample.question}]
    return [{"role": "user", "content": content}]


def everywhere(model, task):
    """The task in all sizes that the model knows, or what is like it on busy pictures."""
    if family_of(model).name == "busy":
        return BUSY_TASKS[BUSY_FOR[task]]
    canvases = family_of(model).canvases
    return resized(TASKS[task], f"{task}-{family_of(model).name}", canvases) if len(canvases) > 1 else TASKS[task]


def test_unknown_model():
    with pytest.raises(ValueError, match="shipped model must be one of testbed, testbed-plain, .*; got 'big'"):
        model_folder("big")


@models
def test_files_are_small_and_complete(name):
    files = {path.name: path.stat().st_size for path in model_folder(name).iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
    assert max(files.values()) < 12_000_000


@models
def test_plain_prompt_and_chat_template_give_the_same_ids(name, shipped):
    processor = AutoProcessor.from_pretrained(model_folder(name))
    sample = everywhere(shipped[name], "where").samples("calibration", 2)[-1]
    view = family_of(shipped[name]).view(Canvas(*reversed(sample.images[0].size)))
    text = processor.apply_chat_template(message(sample), add_generation_prompt=True)
    by_hand = processor(text=text, images=sample.images[0], return_tensors="pt")
    at_once = processor.apply_chat_template(
        message(sample), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    expected = [
        *view.start,
        *[IDS[IMAGE]] * view.tokens,
        *view.end,
        *(family_of(shipped[name]).words[w] for w in (*sample.question.split(), ASSISTANT)),
    ]
    assert by_hand["input_ids"].tolist() == at_once["input_ids"].tolist() == [expected]
    torch.testing.assert_close(by_hand["pixel_values"], at_once["pixel_values"], rtol=0, atol=0)


def test_pictures_of_the_right_size_are_untouched(processor):
    picture = TASKS["where"].samples("calibration", 1)[0].images[0]
    pixels = processor(text="user: <image> count all ? assistant:", images=picture, return_tensors="pt")
    torch.testing.assert_close(pixels["pixel_values"], pixel_values(np.array(picture)[None]), rtol=0, atol=1e-6)


def test_other_pictures_are_resized(processor):
    inputs = processor(
        text="user: <image> Count red? assistant:", images=Image.new("RGB", (200, 120)), return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == (1, 3, 80, 80)
    assert inputs["input_ids"][0, -4:].tolist() == [IDS[w] for w in ("count", "red", "?", ASSISTANT)]


def test_a_conversation_can_go_on(processor):
    first = [{"role": "user", "content": [{"type": "text", "text": "count all ?"}, {"type": "image"}]}]
    rest = [{"role": "assistant", "content": "5"}, {"role": "user", "content": "count red ?"}]
    text = processor.apply_chat_template(first + rest)
    assert text == "user: <image> count all ? assistant: 5 </s> user: count red ? assistant:"


@models
def test_evaluation_agrees_with_generate(name, shipped):
    """Short answers about every size of pictures, and a few long ones."""
    model, processor = shipped[name], AutoProcessor.from_pretrained(model_folder(name))
    canvases = len(family_of(model).canvases)
    for task, n in ((everywhere(model, "at"), max(4, canvases)), (everywhere(model, "list-where"), 3)):
        samples = task.samples("calibration", n)
        said = predictions(model, task, samples, oracle, 1.0)
        for sample, text in zip(samples, said, strict=True):
            prompt = processor.apply_chat_template(message(sample), add_generation_prompt=True)
            inputs = processor(text=prompt, images=sample.images[0], return_tensors="pt")
            out = model.generate(**inputs, max_new_tokens=task.max_new_tokens)[0, inputs["input_ids"].shape[1] :]
            assert processor.decode(out, skip_special_tokens=True) == text


@pytest.mark.parametrize("task", TASKS)
def test_the_plain_model_answers(task, shipped):
    samples = TASKS[task].samples("calibration", 24)
    assert mean_score(shipped["testbed-plain"], TASKS[task], samples, oracle, 1.0) >= 0.75


@pytest.mark.parametrize("name", ADAPTED)
@pytest.mark.parametrize("task", TASKS)
def test_adapted_models_need_the_right_tokens_only(name, task, shipped):
    model, asked = shipped[name], everywhere(shipped[name], task)
    samples = asked.samples("calibration", 24)
    right, other, blind = mean_scores(model, asked, samples, [(oracle, 0.25), (random_order, 0.25), (oracle, 0.0)])
    assert right >= 0.75
    assert other <= 0.7 * right
    assert blind <= 0.5


@pytest.mark.parametrize("task", BUSY_TASKS)
def test_the_busy_model_answers_with_the_right_tokens(task, shipped):
    """Of fine questions, chance answers fewer; any part of a large thing answers most coarse ones."""
    model, asked = shipped[BUSY], BUSY_TASKS[task]
    samples = asked.samples("calibration", 24)
    rankings = (oracle, random_order) if asked.grain == "fine" else (oracle,)
    right, *others = mean_scores(model, asked, samples, [(ranking, 0.25) for ranking in rankings])
    assert right >= 0.7
    assert all(score <= 0.75 * right for score in others)


def test_stored_in_half_the_bytes_it_is_loaded_as_it_was_trained(shipped):
    with safe_open(model_folder(BUSY) / "model.safetensors", "pt") as stored:
        assert {stored.get_tensor(name).dtype for name in stored.keys()} == {torch.float16}  # noqa: SIM118
    assert {value.dtype for value in shipped[BUSY].parameters()} == {torch.float32}


def test_every_shipped_model_is_asked_about_the_whole_picture_in_its_words(shipped):
    for name in MODELS:
        assert set(whole_question(name).split()) <= family_of(shipped[name]).words.keys()
    assert whole_question("somewhere/else") is None


def only_plane(plane):
    """Tokens of one plane of a tiled picture before the others, in random order: what is each plane good for?"""
    return lambda index, sample, view: random_order(index, sample, view) + (view.plane == plane)


def test_glyphs_need_the_fine_plane(shipped):
    """The coarse picture alone is not enough: tiles are worth their tokens."""
    task = TASKS["what"]
    samples = task.samples("calibration", 24)
    coarse, fine = (
        mean_score(shipped["testbed-llava-next"], task, samples, only_plane(plane), share)
        for plane, share in ((0, 25 / 125), (1, 100 / 125))
    )
    assert fine >= 0.75
    assert coarse <= 0.5


def test_share_of_kept_tokens(shipped):
    view = family_of(shipped["testbed-llava-next"]).view(Canvas(40, 80, rows=2))
    assert [kept_tokens(share, view) for share in (0, 0.25, 1)] == [0, 18, 75]
    with pytest.raises(ValueError, match="share of kept tokens must be from 0 to 1; got 25"):
        kept_tokens(25, view)


@pytest.mark.parametrize("name", ["testbed-qwen2.5-vl", "testbed-llava-next"])
def test_sizes_of_the_registered_tasks(name, shipped):
    task = TASKS_SIZES["where-sizes"]
    samples = task.samples("calibration", 12)
    assert {s.images[0].size for s in samples} == {(80, 80), (80, 40), (40, 80)}
    assert [s.id for s in task.samples("calibration", 2)] == [s.id for s in samples[:2]]
    assert mean_score(shipped[name], task, samples, oracle, 1.0) >= 0.75


def test_check_command(capsys):
    code = check.main(["--task", "where", "--n", "24", "--split", "calibration", "--json"])
    assert '"task": "where"' in capsys.readouterr().out
    assert code in (0, 1)
    assert check.main(["--task", "where", "--n", "8", "--split", "calibration"]) in (0, 1)
    assert "oracle 25%" in capsys.readouterr().out


def test_what_cannot_be_checked_is_said_in_a_line(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")
    for wrong, said in (
        (
            ["--model", "testbed-plane"],
            "the model must be a registered name or a model folder; got 'testbed-plane'. Did",
        ),
        (["--model", ""], "the model must be a registered name or a model folder; got ''."),
        (["--model", str(tmp_path)], f"the model folder {tmp_path} must be readable. "),
    ):
        assert check.main(wrong) == 2
        assert capsys.readouterr().err.startswith(said)
    for option, value in (("--n", "0"), ("--threads", "-1"), ("--threads", "0")):
        assert check.main([option, value]) == 2
        assert capsys.readouterr().err == f"{option} must be at least 1; got {value}.\n"


def test_a_checkpoint_that_is_none_exports_nothing(tmp_path, capsys):
    (tmp_path / "x.pt").write_bytes(b"no checkpoint")
    Checkpoint(build_model(2).state_dict(), {}, {}, TrainingProgress()).save(tmp_path / "y.pt")
    out = ["--out", str(tmp_path / "model")]
    for name, more, said in (
        ("none.pt", [], "must be that of a stage of training"),
        ("x.pt", [], "must be that of a stage of training"),
        ("y.pt", ["--model", "qwen2.5-vl"], "must be of a model of the family qwen2.5-vl"),
    ):
        assert export_main([str(tmp_path / name), *more, *out]) == 2
        assert capsys.readouterr().err.startswith(f"the checkpoint {tmp_path / name} {said}")
    assert not (tmp_path / "model").exists()


def test_the_rule_of_the_check():
    result = check.TaskResult("at", "exact", 10, full=0.89, oracle=0.5, random=0.45, text_only=0.0)
    assert len(list(result.complaints())) == 3
    fit = check.TaskResult("at", "exact", 10, full=0.95, oracle=0.94, random=0.3, text_only=0.0)
    assert not list(fit.complaints())
    assert math.isclose(fit.kept, 0.94 / 0.95)


def test_export_of_a_checkpoint(tmp_path):
    model = build_model(6)
    Checkpoint(model.state_dict(), {}, {}, TrainingProgress()).save(tmp_path / "x.pt")
    export(tmp_path / "x.pt", tmp_path / "model")
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)
    export(tmp_path / "x.pt", tmp_path / "half", half=True)
    whole, halved = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("model", "half"))
    assert halved < 0.55 * whole
    half = LlavaForConditionalGeneration.from_pretrained(tmp_path / "half")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(half.state_dict()[name], value.half().float(), rtol=0, atol=0)
    assert AutoProcessor.from_pretrained(tmp_path / "model").tokenizer.get_vocab() == IDS
    assert build_processor(LLAVA).tokenizer("count all ?")["input_ids"][0] == IDS[BEGIN]
