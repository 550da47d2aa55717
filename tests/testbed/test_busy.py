"""The busy pictures: what lies where, and questions that the picture answers."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tokentrim.plugins.loader import load
from tokentrim.testbed import check
from tokentrim.testbed.busy.render import render
from tokentrim.testbed.busy.scenes import GRID, SIZE, SIZES, centre_patch, draw_scene, patch_box, patches_of
from tokentrim.testbed.busy.tasks import TASKS, all_needs, evidence_of, region_of
from tokentrim.testbed.busy.vocabulary import IDS, LARGE, LETTERS, SIGNS, SMALL, decode, encode
from tokentrim.testbed.vocabulary import COLORS, IDS as OLD_IDS, SPECIAL

seeds = st.integers(0, 2**32 - 1)


def test_same_seed_same_picture():
    first, second, other = (render(rng, draw_scene(rng)) for rng in map(np.random.default_rng, (3, 3, 4)))
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


@given(seeds)
def test_large_things_span_patches_and_small_print_lies_in_one(seed):
    scene = draw_scene(np.random.default_rng(seed))
    assert 1 <= len(scene.large) <= 4
    assert len({thing.kind for thing in scene.large}) == len(scene.large)
    assert [thing.size for thing in scene.large] == sorted((thing.size for thing in scene.large), reverse=True)
    shares = patches_of(scene.owner)
    for i, thing in enumerate(scene.large):
        assert thing.size in SIZES
        assert thing.shown
        for fine, (height, width) in ((thing.digit, (7, 5)), (thing.mark, (6, 6))):
            if fine is not None:
                _, _, bottom, right = fine.box
                assert fine.top + height <= bottom
                assert fine.left + width <= right
                assert (shares[centre_patch(fine.box)] == i).mean() >= 0.85
    assert all(len(patches) >= 4 for patches in scene.corners)


@given(seeds)
def test_nothing_covers_small_print(seed):
    scene = draw_scene(np.random.default_rng(seed))
    printed = [fine.box for thing in scene.large for fine in (thing.digit, thing.mark) if fine is not None]
    printed += [letter.box for sign in scene.signs for letter in sign.letters]
    assert len(set(printed)) == len(printed)
    ink = np.zeros((SIZE, SIZE), np.int64)
    for thing in scene.small:
        ink[thing.box[0] : thing.box[2], thing.box[1] : thing.box[3]] += 1
    for sign in scene.signs:
        top, left, bottom, right = sign.board
        ink[top:bottom, left:right] += 1
    assert ink.max(initial=0) <= 1
    assert len({centre_patch(thing.box) for thing in scene.small}) == len(scene.small)


@pytest.mark.parametrize("name", TASKS)
def test_questions_are_in_the_vocabulary_and_say_what_they_need(name):
    rng = np.random.default_rng(11)
    asked = 0
    for _ in range(24):
        scene = draw_scene(rng)
        question = TASKS[name].ask(rng, scene)
        if question is None:
            continue
        asked += 1
        assert decode(encode(question.question)) == question.question
        assert decode(encode(question.answer)) == question.answer
        assert len(encode(question.answer)) < TASKS[name].max_new_tokens
        assert all(need.patches for need in question.needs)
        assert {need.box for need in question.needs} <= {need.box for need in all_needs(scene)}
        weights = [region.weight for region in evidence_of(scene, question)]
        assert weights.count(1.0) == len(question.needs)
    assert asked >= 6


def test_is_there_is_answered_no_as_often_as_yes():
    rng = np.random.default_rng(5)
    answers = []
    for _ in range(200):
        scene = draw_scene(rng)
        question = TASKS["busy-there"].ask(rng, scene)
        if question is None:
            continue
        there = question.question.split()[2] in {thing.kind for thing in scene.large}
        assert question.answer == ("yes" if there else "no")
        answers.append(there)
    assert 0.4 < np.mean(answers) < 0.65


def test_descriptions_go_through_all_kinds_and_score_what_is_there():
    rng = np.random.default_rng(2)
    scene, task = draw_scene(rng), TASKS["busy-describe"]
    question = task.ask(rng, scene)
    assert question is not None
    parts = question.answer.split(" , ")
    colors = {thing.kind: thing.color for thing in scene.large}
    assert parts[: len(LARGE)] == [f"{kind} {colors.get(kind, 'no')}" for kind in LARGE]
    assert parts[len(LARGE)] == " ".join(("ground", *scene.grounds))
    often = [sum(thing.kind == kind for thing in scene.small) or "no" for kind in SMALL]
    assert parts[len(LARGE) + 1 :] == [f"small {kind} {n}" for kind, n in zip(SMALL, often, strict=True)]
    (sample,) = task.samples("test", 1)
    there = [part for part in sample.answer.split(" , ") if "no" not in part.split()]
    assert 2 < len(there) < len(parts)
    assert task.score(sample, sample.answer) == task.score(sample, " , ".join(there)) == 1
    assert task.score(sample, "") == task.score(sample, "house no , small star no") == 0
    assert task.score(sample, f"{sample.answer} , tree black") == pytest.approx(2 * len(there) / (2 * len(there) + 1))


def test_what_a_question_needs_is_a_patch_that_shows_it():
    rng = np.random.default_rng(9)
    for _ in range(12):
        scene = draw_scene(rng)
        for need in all_needs(scene):
            assert patch_box(centre_patch(need.box)) == need.box
            assert not need.patches or centre_patch(need.box) in need.patches


def test_splits_share_no_picture_and_grow_from_the_front():
    task = TASKS["busy-where"]
    few, many, other = task.samples("test", 3), task.samples("test", 20), task.samples("calibration", 3)
    assert [s.id for s in few] == [s.id for s in many[:3]]
    assert few[0].images[0].tobytes() == many[0].images[0].tobytes()
    assert few[0].images[0].tobytes() != other[0].images[0].tobytes()
    assert task.training(0)[0].images[0].tobytes() not in {s.images[0].tobytes() for s in (*few, *other)}
    with pytest.raises(ValueError, match="split must be"):
        task.samples("train", 1)  # type: ignore[arg-type]


def test_vocabulary_has_no_word_twice_and_keeps_the_special_ids():
    assert len(IDS) == len(set(IDS)) == max(IDS.values()) + 1
    assert [IDS[word] for word in (*SPECIAL, "user:")] == [OLD_IDS[word] for word in (*SPECIAL, "user:")]
    assert all(set(word) <= set(LETTERS) and 3 <= len(word) <= 5 for word in SIGNS)
    assert len(set(SIGNS)) == len(SIGNS)
    with pytest.raises(ValueError, match="vocabulary; got"):
        encode("read zebra")


def test_a_picture_has_the_patches_that_the_models_see():
    assert GRID == 16


def changed(scene, other):
    """Which pixels differ between two scenes that are painted with the same random numbers."""
    first, second = (render(np.random.default_rng(1), s) for s in (scene, other))
    return (first != second).any(-1)


def within(pixels, box):
    """Whether something changed, all of it inside a box."""
    top, left, bottom, right = box
    outside = pixels.copy()
    outside[top:bottom, left:right] = False
    return bool(pixels.any() and not outside.any())


def test_an_answer_shows_in_its_evidence_and_nowhere_else():
    rng = np.random.default_rng(8)
    scene = next(s for s in iter(lambda: draw_scene(rng), None) if s.signs and s.large[0].digit and s.large[0].mark)
    thing, sign, small = scene.large[0], scene.signs[0], scene.small[0]
    assert thing.digit is not None
    assert thing.mark is not None

    def with_first(**changes):
        return replace(scene, large=(replace(thing, **changes), *scene.large[1:]))

    digit = replace(thing.digit, value="one" if thing.digit.value != "one" else "two")
    mark = replace(thing.mark, value=next(c for c in COLORS if c not in (thing.mark.value, thing.color)))
    letter = replace(sign.letters[0], value="a" if sign.letters[0].value != "a" else "e")
    read = replace(scene, signs=(replace(sign, letters=(letter, *sign.letters[1:])), *scene.signs[1:]))
    kind = replace(small, kind="star" if small.kind != "star" else "ring")
    assert within(changed(scene, with_first(digit=digit)), digit.box)
    assert within(changed(scene, with_first(mark=mark)), mark.box)
    assert within(changed(scene, read), letter.box)
    assert within(changed(scene, replace(scene, small=(kind, *scene.small[1:]))), small.box)
    other = next(c for c in COLORS if c not in (thing.color, thing.mark.value))
    assert within(changed(scene, with_first(color=other)), thing.box)


def test_what_is_asked_for_is_as_often_faint_as_salient():
    """Size and contrast of a thing do not tell whether a question is about it."""
    rng = np.random.default_rng(12)
    asked: list[tuple[float, float, bool]] = []
    for _ in range(300):
        scene = draw_scene(rng)
        question = TASKS["busy-color"].ask(rng, scene)
        assert question is not None
        if len(scene.large) > 1:
            asked += [(t.contrast, t.size, region_of(t) == question.needs[0]) for t in scene.large]
    contrast, size, chosen = np.array(asked, float).T
    for salience in (contrast, size):
        assert abs(np.corrcoef(salience, chosen)[0, 1]) < 0.08


def test_the_check_without_what_trains_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tokentrim.testbed.training.check", None)
    assert check.main() == 2
    assert "must be run from the repository" in capsys.readouterr().err


def test_every_task_is_registered():
    tasks = load().registries["task"]
    assert {name: tasks.get(name) for name in TASKS} == TASKS


def test_what_hides_a_thing_does_not_show_it():
    rng = np.random.default_rng(6)
    hidden = 0
    for _ in range(40):
        scene = draw_scene(rng)
        letters = {centre_patch(letter.box) for sign in scene.signs for letter in sign.letters}
        marks = {centre_patch(thing.mark.box) for thing in scene.large if thing.mark is not None}
        owned = {
            p for i in range(len(scene.large)) for p in np.flatnonzero((patches_of(scene.owner) == i).mean(1) > 0.5)
        }
        shown = {patch for thing in scene.large for patch in thing.shown}
        assert not shown & (letters | marks)
        hidden += len(owned & (letters | marks))
    assert hidden > 20
