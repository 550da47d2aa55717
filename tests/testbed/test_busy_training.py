"""The training of the busy pictures' model on a few steps."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tokentrim.errors import DataError
from tokentrim.testbed.busy.scenes import centre_patch, place_of
from tokentrim.testbed.busy.tasks import TASKS, all_needs
from tokentrim.testbed.busy.vocabulary import IDS, decode
from tokentrim.testbed.training import check
from tokentrim.testbed.training.busy import train
from tokentrim.testbed.training.busy.batch import (
    HELPS,
    draw_plan,
    draw_priorities,
    draw_scenes,
    pack_questions,
    targets_of,
)
from tokentrim.testbed.training.busy.check import BusyResult, GrainResult, with_grains
from tokentrim.testbed.training.busy.model import BUSY, NO_PRINT, PRINT, TOKENS
from tokentrim.testbed.training.busy.recipe import QUESTIONS, STAGES
from tokentrim.testbed.training.busy.words import alignment_loss, spelled_out
from tokentrim.testbed.training.checkpoint import Checkpoint, TrainingProgress
from tokentrim.testbed.training.evaluate import oracle, predictions
from tokentrim.testbed.training.export import export
from tokentrim.testbed.training.families import family_of
from tokentrim.testbed.training.packing import IGNORE
from tokentrim.testbed.vocabulary import COLUMNS, ROWS

pytestmark = pytest.mark.recipe


def test_questions_bear_labels_only_where_the_kept_tokens_answer_them():
    rng = np.random.default_rng(0)
    scenes = draw_scenes(rng, 3)
    everything, nothing = np.ones((3, TOKENS), np.bool_), np.zeros((3, TOKENS), np.bool_)
    seen = pack_questions(np.random.default_rng(1), scenes, QUESTIONS, everything).packed
    blind = pack_questions(np.random.default_rng(1), scenes, QUESTIONS, nothing).packed
    assert seen.ids.tolist() == blind.ids.tolist()
    assert (seen.labels != IGNORE).sum() > 3 * (blind.labels != IGNORE).sum()
    assert sum(seen.lengths) == seen.ids.shape[1]


def test_the_last_words_of_a_question_learn_the_answer_too():
    scenes = draw_scenes(np.random.default_rng(0), 2)
    questions = pack_questions(np.random.default_rng(1), scenes, ("busy-color",), np.ones((2, TOKENS), np.bool_))
    packed = questions.packed
    rows = (packed.ids.tolist(), packed.labels.tolist(), questions.answers.tolist())
    for scene, ids, labels, answers in zip(scenes, *rows, strict=True):
        words = decode(ids).split()
        color = IDS[next(thing.color for thing in scene.large if thing.kind == words[2])]
        assert words[:2] == ["color", "of"]
        assert labels[:5] == [IGNORE, IGNORE, color, color, color]
        assert answers[:5] == [IGNORE] * 4 + [color]


def test_questions_of_the_training_alone_are_about_what_is_there():
    rng = np.random.default_rng(1)
    scene = next(s for s in draw_scenes(rng, 20) if len({t.kind for t in s.small}) == len(s.small) - 1)
    small = {t.kind: t.color for t in scene.small}
    color, where = HELPS["help-color"](rng, scene), HELPS["help-where"](rng, scene)
    assert color is not None
    assert where is not None
    assert small[color.question.split()[2]] == color.answer
    asked = next(t for t in scene.large if t.kind == where.question.split()[1])
    row, column = place_of(asked.box)
    assert where.answer == f"{ROWS[row]} {COLUMNS[column]}"
    digits = [t.digit for t in scene.large if t.digit is not None]
    alone = HELPS["help-digit"](rng, scene)
    assert (alone is not None) == (len(digits) == 1)


def test_words_stand_for_patches():
    scenes = draw_scenes(np.random.default_rng(4), 2)
    targets = targets_of(scenes)
    words = torch.eye(len(IDS))
    told = spelled_out(words, targets)
    thing = scenes[0].large[0]
    row, column = place_of(thing.box)
    plain = next(p for p in thing.shown if targets.print[0, p] == NO_PRINT)
    said = {word for word, i in IDS.items() if told[0, plain, i]}
    assert said == {thing.kind, thing.color, ROWS[row], COLUMNS[column]}
    small = scenes[0].small[0]
    row, column = place_of(small.box)
    said = {word for word, i in IDS.items() if told[0, centre_patch(small.box), i]}
    assert {small.kind, small.color, ROWS[row], COLUMNS[column]} <= said
    assert alignment_loss(told, words, targets) == 0
    assert alignment_loss(torch.zeros_like(told), words, targets) == 1


def test_targets_name_every_letter():
    scenes = draw_scenes(np.random.default_rng(4), 4)
    targets = targets_of(scenes)
    for i, scene in enumerate(scenes):
        for sign in scene.signs:
            for letter in sign.letters:
                patch = letter.top // 8 * 16 + letter.left // 8
                assert PRINT[int(targets.print[i, patch])] == letter.value
    assert (targets.print == NO_PRINT).float().mean() > 0.8


def test_plans_keep_what_is_left_of_the_tokens():
    rng = np.random.default_rng(0)
    for _ in range(50):
        plan = draw_plan(rng, 0.3, 6)
        counts = list(plan.schedule.values())
        assert counts == sorted(counts, reverse=True)
        assert all(0 <= boundary < 6 for boundary in plan.schedule)
        assert all(0 <= count <= TOKENS for count in counts)
    priority = draw_priorities(rng, draw_scenes(rng, 2))
    assert priority.shape == (2, TOKENS)


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path, monkeypatch):
    small = tuple(replace(stage, steps=3, batch=2, warmup=1) for stage in STAGES)
    monkeypatch.setattr(train, "STAGES", small)
    for run, stops in (("whole", (None,)), ("parts", (1, None))):
        (tmp_path / run).mkdir()
        for stage in small:
            for stop in stops:
                train.BusyRun(tmp_path / run, stage).run(stop)
    whole, parts = (torch.load(tmp_path / run / "adapted.pt", weights_only=True)["model"] for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    with pytest.raises(DataError, match="Train stage vision first"):
        train.BusyRun(tmp_path / "empty", small[1])


def test_training_that_cannot_start_says_so_and_leaves_nothing(tmp_path, capsys):
    run, file = tmp_path / "run", tmp_path / "file"
    assert train.main(["--run", str(run), "--stage", "control"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"the checkpoint that stage control starts from must exist; got '{run}/alignment.pt'. Train")
    assert not run.exists()
    for wrong in (["--stage", "contol"], ["--stop-after", "0"]):
        with pytest.raises(SystemExit) as ended:
            train.main(["--run", str(run), *wrong])
        assert ended.value.code == 2
    file.write_bytes(b"no checkpoint")
    assert train.main(["--run", str(file), "--stage", "vision", "--stop-after", "1"]) == 2
    assert f"the output must be a folder; got '{file}'" in capsys.readouterr().err
    run.mkdir()
    file.rename(run / "alignment.pt")
    assert train.main(["--run", str(run), "--stage", "control"]) == 2
    assert f"the checkpoint {run}/alignment.pt must be that of a stage of training" in capsys.readouterr().err
    assert [path.name for path in run.iterdir()] == ["alignment.pt"]


def test_the_model_is_under_twelve_megabytes():
    assert sum(p.numel() for p in BUSY.build(12).parameters()) * 4 < 12e6


def test_a_stage_may_begin_with_few_tokens_of_all_there_is_to_see():
    stage = replace(STAGES[0], few=10)
    most = [stage.most_tokens(step) for step in (0, 9, 15, 20, 100)]
    assert most == [40, 40, 148, TOKENS, TOKENS]
    plan = draw_plan(np.random.default_rng(0), 1.0, 6, 40)
    assert 12 <= plan.schedule[0] <= 40
    scene = draw_scenes(np.random.default_rng(3), 1)[0]
    priority = draw_priorities(np.random.default_rng(0), [scene], everything=True)[0]
    assert all((priority[list(need.patches)] >= 10).any() for need in all_needs(scene))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An untrained model as a folder."""
    folder = tmp_path_factory.mktemp("busy")
    torch.manual_seed(0)
    Checkpoint(BUSY.build(2).state_dict(), {}, {}, TrainingProgress()).save(folder / "x.pt")
    export(folder / "x.pt", folder / "model", BUSY)
    return folder / "model"


def test_an_exported_model_reads_as_in_training(exported):
    model = AutoModelForImageTextToText.from_pretrained(exported).eval()
    assert family_of(model) is BUSY
    task = TASKS["busy-sign"]
    samples = task.samples("calibration", 2)
    processor = AutoProcessor.from_pretrained(exported)
    assert processor.tokenizer.get_vocab() == IDS
    for sample, said in zip(samples, predictions(model, task, samples, oracle, 1.0), strict=True):
        text = f"user: <image> {sample.question} assistant:"
        inputs = processor(text=text, images=sample.images[0], return_tensors="pt")
        assert inputs["input_ids"].shape == (1, 2 + TOKENS + 4)
        out = model.generate(**inputs, max_new_tokens=task.max_new_tokens)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(out, skip_special_tokens=True) == said


def test_check_asks_a_busy_model_about_busy_pictures(exported, capsys):
    asked = ["--model", str(exported), "--n", "2", "--split", "calibration", "--json"]
    assert check.main([*asked, "--task", "busy-color"]) == 1
    row, mean = json.loads(capsys.readouterr().out)["tasks"]
    assert row["grain"] == "coarse"
    assert {**row, "task": mean["task"], "complaints": mean["complaints"]} == mean
    assert "below 90%" in row["complaints"][0]
    assert check.main([*asked, "--task", "where"]) == 2
    assert "must be one of busy-ground" in capsys.readouterr().err


def test_the_rule_for_busy_pictures():
    scores = {"full": 1.0, "oracle_quarter": 1.0, "oracle_ninth": 0.95, "random_ninth": 0.3, "text_only": 0.2}
    for grain, good, bad in (("coarse", 0.9, 0.5), ("fine", 0.5, 0.9)):
        assert not list(GrainResult("x", grain, 9, random_half=good, **scores).complaints())
        assert len(list(GrainResult("x", grain, 9, random_half=bad, **scores).complaints())) == 1
        assert not list(BusyResult("x", grain, 9, random_half=bad, **scores).complaints())
    broken = ("long", 9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.0)
    assert len(list(BusyResult("x", *broken).complaints())) == 3
    (only,) = GrainResult("x", *broken).complaints()
    assert only == "random at 11% reaches 50.0%, hardly less than at 50%"


def test_chance_is_judged_by_the_mean_of_a_grain():
    easy = BusyResult("easy", "fine", 10, 1.0, 1.0, 1.0, 0.9, 0.4, 0.0)
    hard = BusyResult("hard", "fine", 20, 1.0, 1.0, 1.0, 0.3, 0.1, 0.0)
    long = BusyResult("long", "long", 20, 1.0, 1.0, 1.0, 0.3, 0.1, 0.0)
    *tasks, fine, other = with_grains([easy, hard, long])
    assert tasks == [easy, hard, long]
    assert (fine.task, fine.n, fine.random_half, other.grain) == ("mean, fine", 30, pytest.approx(0.6), "long")
    assert not list(fine.complaints())
