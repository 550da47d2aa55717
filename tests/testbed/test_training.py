"""The training code on a few steps; and the array form of the questions against the scenes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from tokentrim.errors import ConfigError, DataError, UnknownNameError
from tokentrim.testbed.scenes import TOKENS, draw_scenes, render
from tokentrim.testbed.tasks import TASKS, ask_list_all, ask_list_where
from tokentrim.testbed.training.checkpoint import Checkpoint
from tokentrim.testbed.training.dropout import DropoutMix, DropoutPlan, draw_plan, draw_priorities
from tokentrim.testbed.training.forward import run_packed
from tokentrim.testbed.training.losses import patch_targets
from tokentrim.testbed.training.model import build_model, deepen, pixel_values
from tokentrim.testbed.training.packing import IGNORE, AnswerWeights, caption_segment, layout, pack, short_segment
from tokentrim.testbed.training.questions import ASKERS
from tokentrim.testbed.training.recipe import DEEP_LAYERS, DEEP_PLACES, QUESTIONS, RECIPES, STAGES
from tokentrim.testbed.training.stage import StageOptions
from tokentrim.testbed.training.train import train
from tokentrim.testbed.training.view import SQUARE_VIEW, fine_centre
from tokentrim.testbed.vocabulary import COLUMNS, END, IDS, NOTHING, ROWS, decode

pytestmark = pytest.mark.recipe

seeds = st.integers(0, 2**32 - 1)
MIX = DropoutMix()
PREFIX = 2 + TOKENS  # begin token, "user:", picture
NAMES = tuple(stage.name for stage in STAGES)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def answer_of(ids, labels):
    """Question words, and the answer that the labels teach."""
    return decode(ids.tolist()), [int(label) for label in labels if label != IGNORE]


@pytest.mark.parametrize("name", ASKERS)
@given(seed=seeds, restrict=st.booleans())
def test_packed_answers_agree_with_the_scene(name, seed, restrict):
    rng = np.random.default_rng(seed)
    scenes = draw_scenes(rng, 4, 1, 10)
    visible = rng.random(scenes.cell.shape) < 0.5 if restrict else None
    segment = short_segment(name, rng, scenes, visible, AnswerWeights())
    for index in range(4):
        text, labels = answer_of(segment.ids[index], segment.labels[index])
        if not labels:
            continue
        assert labels[-1] == IDS[END]
        answer = decode(labels).split()
        words = text.split()
        objects = scenes.scene(index).objects
        seen = [o for i, o in enumerate(objects) if visible is None or visible[index, i]]
        match name:
            case "color":
                assert [o.color for o in objects if o.glyph == words[2]] == answer
                assert words[2] in {o.glyph for o in seen}
            case "what":
                assert [o.glyph for o in objects if o.color == words[2]] == answer
                assert words[2] in {o.color for o in seen}
            case "count-color":
                assert [str(sum(o.color == words[1] for o in objects))] == answer
                assert sum(o.color == words[1] for o in seen) == int(answer[0])
            case "count-all":
                assert [str(len(objects))] == answer
                assert len(seen) == len(objects)
            case "at":
                there = [o for o in objects if [ROWS[o.row], COLUMNS[o.column]] == words[1:3]]
                assert answer == ([there[0].color, there[0].glyph] if there else [NOTHING])
                assert not there or there[0] in seen
            case "where":
                there = [o for o in objects if [o.color, o.glyph] == words[1:3]]
                assert [[ROWS[o.row], COLUMNS[o.column]] for o in there] == [answer]
                assert there[0] in seen
            case _:
                raise AssertionError(name)


@given(seed=seeds)
def test_captions_agree_with_the_tasks(seed):
    rng = np.random.default_rng(seed)
    scenes = draw_scenes(rng, 2, 1, 10)
    for kind, ask in (("list-all", ask_list_all), ("list-where", ask_list_where)):
        segment = caption_segment(kind, scenes, AnswerWeights())
        for index in range(2):
            asked = ask(rng, scenes.scene(index))
            _, labels = answer_of(segment.ids[index], segment.labels[index])
            assert labels[-1] == IDS[END]
            assert decode(labels) == asked.answer
            assert decode(segment.ids[index].tolist()).startswith(f"{asked.question} assistant: {asked.answer[:9]}")


def test_every_task_is_trained():
    assert set(TASKS) == {*QUESTIONS, "list-all", "list-where"}


def test_layout_isolates_segments():
    mask, positions = layout((3, 2))
    seen, position = mask == 0, positions[0]
    first, second = slice(PREFIX, PREFIX + 3), slice(PREFIX + 3, PREFIX + 5)
    assert seen[first, :PREFIX].all()
    assert not seen[second, first].any()
    assert not seen[first, second].any()
    assert seen[second, second].tolist() == [[True, False], [True, True]]
    assert position[first].tolist() == [PREFIX, PREFIX + 1, PREFIX + 2]
    assert position[second].tolist() == [PREFIX, PREFIX + 1]


@given(seed=seeds)
def test_dropout_keeps_what_is_asked_about(seed):
    rng = np.random.default_rng(seed)
    plan = draw_plan(rng, MIX, DEEP_LAYERS)
    scenes = draw_scenes(rng, 3, 1, 10)
    priority, visible = draw_priorities(rng, scenes, plan)
    assert priority.shape == (3, TOKENS)
    counts = [plan.schedule[b] for b in sorted(plan.schedule)]
    assert counts == sorted(counts, reverse=True)
    assert all(0 <= count <= TOKENS for count in counts)
    shallow = [count for b, count in plan.schedule.items() if b < MIX.deep_start]
    if plan.mode == "keep-all":
        visible = scenes.present
    if plan.mode in ("keep-all", "keep-some"):
        kept = np.argsort(-priority, axis=1)[:, : min(shallow)]
        for index, slot in zip(*np.nonzero(visible), strict=True):
            assert fine_centre(scenes, SQUARE_VIEW)[index, slot] in kept[index]


def test_targets_mark_one_patch_per_object():
    scenes = draw_scenes(np.random.default_rng(5), 8, 1, 10)
    targets = patch_targets(scenes)
    assert targets.centre.sum(1).tolist() == scenes.count.tolist()
    assert (targets.centre == (targets.color != 6)).all()


@pytest.fixture(scope="module")
def shallow():
    torch.manual_seed(0)
    return build_model(6).eval()


def small_batch(seed=0):
    rng = np.random.default_rng(seed)
    scenes = draw_scenes(rng, 2, 4, 10)
    pixels = pixel_values(render(rng, scenes))
    return rng, scenes, pixels, pack(rng, scenes, ("where", "count-all"), "list-all", None, AnswerWeights())


@torch.no_grad()
def test_deeper_model_starts_as_the_same_function(shallow):
    deep = build_model(DEEP_LAYERS).eval()
    deep.load_state_dict(deepen(shallow.state_dict(), DEEP_PLACES, DEEP_LAYERS))
    _, _, pixels, packed = small_batch()
    everything = torch.zeros(2, TOKENS)
    a, b = (run_packed(model, pixels, packed, DropoutPlan(), everything).logits for model in (shallow, deep))
    torch.testing.assert_close(a, b)


@torch.no_grad()
def test_dropping_is_masking(shallow):
    """Removed tokens have no say: their pixels may change at will, where patches do not mix."""
    rng, scenes, pixels, packed = small_batch()
    plan = DropoutPlan("keep-all", {0: 30, 3: 12})
    priority, _ = draw_priorities(rng, scenes, plan)
    out = run_packed(shallow, pixels, packed, plan, torch.from_numpy(priority)).logits
    again = run_packed(shallow, pixels, packed, DropoutPlan("keep-all", {0: 30, 3: 100}), torch.from_numpy(priority))
    assert out.shape == again.logits.shape
    assert not torch.allclose(out, again.logits), "the second removal must matter"
    rearranged = torch.from_numpy(priority).double().argsort(-1).argsort(-1).float()  # same order, other numbers
    torch.testing.assert_close(out, run_packed(shallow, pixels, packed, plan, rearranged).logits)


@torch.no_grad()
def test_packed_segment_equals_the_question_alone(shallow):
    _, _, pixels, packed = small_batch()
    everything = torch.zeros(2, TOKENS)
    together = run_packed(shallow, pixels, packed, DropoutPlan(), everything).logits
    ids = torch.cat(
        [
            torch.tensor([[IDS["<s>"], IDS["user:"]] + [IDS["<image>"]] * TOKENS] * 2),
            packed.ids[:, : packed.lengths[0]],
        ],
        1,
    )
    alone = shallow(input_ids=ids, pixel_values=pixels).logits[:, PREFIX:]
    torch.testing.assert_close(together[:, : packed.lengths[0]], alone, rtol=1e-4, atol=1e-4)


def brief(monkeypatch, **changes):
    """Stages of 4 steps on 2 pictures."""
    stages = tuple(replace(s, steps=4, batch=2, warmup=1, late_from=2, **changes) for s in STAGES)
    monkeypatch.setitem(RECIPES, "llava", stages)
    return stages


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    brief(monkeypatch)
    options = StageOptions(run=tmp_path / "whole", log_every=1, probe_every=0)
    train(options)
    halves = replace(options, run=tmp_path / "halves", stop_after=2)
    for stage in NAMES:
        for _ in range(2):
            train(replace(halves, stage=stage))
    for stage in NAMES:
        whole, resumed = (Checkpoint.load(tmp_path / run / f"{stage}.pt") for run in ("whole", "halves"))
        assert whole.progress == resumed.progress
        assert whole.progress.step == 4
        for name, value in whole.model.items():
            torch.testing.assert_close(value, resumed.model[name], rtol=0, atol=0, msg=f"{stage}: {name}")
    records = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert {r["stage"] for r in records} == set(NAMES)


@pytest.mark.slow
def test_two_processes_train(tmp_path):
    train(StageOptions(run=tmp_path, stage="vision", processes=2, stop_after=2))
    assert Checkpoint.load(tmp_path / "vision.pt").progress.step == 2


@pytest.mark.slow
def test_vision_loss_falls(tmp_path):
    train(StageOptions(run=tmp_path, stage="vision", steps_scale=0.03, log_every=5))
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert records[-1]["meters"]["loss"] < 0.9 * records[0]["meters"]["loss"]


def test_stages_need_their_predecessor(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(DataError, match="Train stage vision first"):
        train(StageOptions(run=run, stage="alignment"))
    with pytest.raises(UnknownNameError, match="Did you mean 'alignment'[?] Known: adapted, alignment, all"):
        train(StageOptions(run=run, stage="aligment"))
    for bad in ({"processes": 0}, {"stop_after": 0}, {"steps_scale": -1.0}, {"steps_scale": float("nan")}):
        with pytest.raises(ConfigError, match="must be"):
            train(StageOptions(run=run, **bad))
    assert not run.exists()
