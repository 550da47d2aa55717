import ast
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

import tokentrim.contracts.tasks
from tokentrim.contracts.tasks import Evidence, Sample, Task, evidence_over, evidence_scores
from tokentrim.testbed import scenes, tasks, vocabulary
from tokentrim.testbed.scenes import GRID, IMAGE_SIZE, draw_scenes
from tokentrim.testbed.tasks import TASKS, TASKS_SIZES, evidence_of, exact, list_f1
from tokentrim.testbed.vocabulary import COLUMNS, NOTHING, ROWS, encode

seeds = st.integers(0, 2**32 - 1)
names = pytest.mark.parametrize("name", TASKS)


@names
def test_samples_are_deterministic_and_prefix_stable(name):
    task = TASKS[name]
    long, short = task.samples("test", 40), task.samples("test", 5)
    assert isinstance(task, Task)
    assert [s.id for s in long[:2]] == [f"{name}/test/0000", f"{name}/test/0001"]
    for a, b in zip(short, long, strict=False):
        assert (a.id, a.question, a.answer, a.evidence) == (b.id, b.question, b.answer, b.evidence)
        assert a.images[0].tobytes() == b.images[0].tobytes()
    assert len({s.images[0].tobytes() for s in long}) == 40


@names
def test_splits_share_no_picture(name):
    pictures = {
        split: {s.images[0].tobytes() for s in TASKS[name].samples(split, 40)} for split in ("calibration", "test")
    }
    assert not pictures["calibration"] & pictures["test"]


@names
def test_texts_are_in_the_vocabulary_and_fit(name):
    task = TASKS[name]
    for sample in task.samples("calibration", 40):
        assert sample.images[0].size == (IMAGE_SIZE, IMAGE_SIZE)
        assert encode(sample.question)
        assert len(encode(sample.answer)) < task.max_new_tokens, "the end token needs room too"
        assert task.score(sample, sample.answer) == 1.0
        assert task.score(sample, "") == 0.0
        assert task.score(sample, "purple purple") == 0.0


def test_long_answers_are_long():
    lengths = [len(s.answer.split()) for s in TASKS["list-where"].samples("test", 120)]
    assert min(lengths) == 19
    assert max(lengths) == 49


@pytest.mark.parametrize(
    ("task", "known"),
    [(TASKS["where"], 544159334), (TASKS_SIZES["list-all-sizes"], 2331240238)],
)
def test_questions_are_the_same_in_every_version(task, known):
    """Results of old versions are about the same questions; what is drawn may not move."""
    asked = [(s.id, s.question, s.answer, s.evidence) for p in ("calibration", "test") for s in task.samples(p, 40)]
    assert zlib.crc32(repr(asked).encode()) == known


def test_unknown_split():
    with pytest.raises(ValueError, match="split must be calibration or test; got 'train'"):
        TASKS["color"].samples("train", 1)


@names
@given(seed=seeds)
def test_answers_agree_with_the_scene(name, seed):
    rng = np.random.default_rng(seed)
    scene = draw_scenes(rng, 1, 1, 10).scene(0)
    asked = TASKS[name].ask(rng, scene)
    if asked is None:
        return
    words = asked.question.split()
    things = {(o.color, o.glyph, ROWS[o.row], COLUMNS[o.column]) for o in scene.objects}
    match name:
        case "color":
            assert [c for c, g, _, _ in things if g == words[2]] == [asked.answer]
        case "what":
            assert [g for c, g, _, _ in things if c == words[2]] == [asked.answer]
        case "count-color":
            assert sum(c == words[1] for c, *_ in things) == int(asked.answer)
        case "count-all":
            assert len(things) == int(asked.answer)
        case "at":
            found = [f"{c} {g}" for c, g, r, q in things if [r, q] == words[1:3]]
            assert (found or [NOTHING]) == [asked.answer]
        case "where":
            assert [f"{r} {q}" for c, g, r, q in things if [c, g] == words[1:3]] == [asked.answer]
        case "list-all":
            listed = Counter(asked.answer.split(" , "))
            assert listed == Counter(f"{c} {g}" for c, g, _, _ in things)
        case "list-where":
            assert {tuple(part.split()) for part in asked.answer.split(" , ")} == things
        case _:
            raise AssertionError(name)


@names
@given(seed=seeds)
def test_evidence_covers_what_is_asked_about(name, seed):
    rng = np.random.default_rng(seed)
    scene = draw_scenes(rng, 1, 1, 10).scene(0)
    asked = TASKS[name].ask(rng, scene)
    if asked is None:
        return
    evidence = evidence_of(scene, asked)
    assert len(evidence) == len(scene.objects) + (asked.cell is not None)
    concerned = {(e.top, e.left) for e in evidence if e.weight == 1.0}
    assert concerned >= {(o.top, o.left) for o in asked.objects}
    assert len(concerned) == len(asked.objects) + (asked.cell is not None)


def test_exact_ignores_blanks_only():
    assert exact("red seven", " red  seven ") == 1.0
    assert exact("red seven", "seven red") == 0.0


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("red seven , blue ring", 1.0),
        ("blue ring , red seven", 1.0),
        ("red seven", 2 / 3),
        ("red seven , blue ring , blue ring", 0.8),
        ("red ring , blue seven", 0.0),
        ("", 0.0),
        (", ,", 0.0),
    ],
)
def test_list_f1(said, score):
    assert list_f1("red seven , blue ring", said) == pytest.approx(score)


def test_evidence_ranking_by_hand():
    mine = Evidence(10, 10, 20, 20)  # touches rows and columns 1-2; its centre (15, 15) is in row 1, column 1
    other = Evidence(50, 50, 60, 60, weight=0.5)  # touches 6-7, centre in row 6, column 6
    order = np.argsort(-evidence_scores([other, mine], 80, 80, 10, 10))
    assert order[0] == 11
    assert set(order[1:4]) == {12, 21, 22}
    assert order[3] == 22, "the corner overlaps least"
    assert order[4] == 66, "then the centre of the other object"
    assert set(order[5:8]) == {67, 76, 77}


def test_evidence_of_another_image_is_ignored():
    evidence = [Evidence(10, 10, 20, 20, image=1)]
    np.testing.assert_array_equal(evidence_scores(evidence, 80, 80, 10, 10), evidence_scores([], 80, 80, 10, 10))
    assert evidence_scores(evidence, 80, 80, 10, 10, image=1).argmax() == 11


@pytest.mark.parametrize("kept", [10, 25, 50])
def test_background_is_kept_evenly(kept):
    order = np.argsort(-evidence_scores([], 80, 80, 10, 10))[:kept]
    quarters = Counter((int(token) // GRID // 5, int(token) % GRID // 5) for token in order)
    assert max(quarters.values()) - min(quarters.get((r, c), 0) for r in (0, 1) for c in (0, 1)) <= 3


@given(
    st.lists(
        st.builds(
            lambda top, left, height, width, weight: Evidence(top, left, top + height, left + width, weight=weight),
            st.integers(0, 300),
            st.integers(0, 300),
            st.integers(1, 80),
            st.integers(1, 80),
            st.sampled_from((0.5, 1.0)),
        ),
        max_size=6,
    ),
    st.integers(80, 320),
    st.integers(80, 320),
    st.integers(1, 24),
    st.integers(1, 24),
)
def test_evidence_scores_are_ordered_and_distinct(evidence, height, width, rows, cols):
    """Boxes that reach over the picture's edge or lie outside it, and any grid."""
    scores = evidence_scores(evidence, height, width, rows, cols)
    assert scores.shape == (rows * cols,)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores, evidence_scores(list(reversed(evidence)), height, width, rows, cols))


@pytest.mark.parametrize("module", [tokentrim.contracts.tasks, scenes, tasks, vocabulary], ids=lambda m: m.__name__)
def test_tasks_themselves_need_no_torch(module):
    nodes = ast.walk(ast.parse(Path(module.__file__).read_text()))
    imported = {
        name.split(".")[0]
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names])
    }
    assert not imported & {"torch", "transformers"}


def test_score_uses_the_metric():
    sample = Sample("x", (), "list all ?", "red seven , blue ring")
    assert TASKS["list-all"].score(sample, "red seven") == pytest.approx(2 / 3)
    assert TASKS["where"].score(sample, "red seven") == 0.0


def test_evidence_over_two_planes():
    """A coarse plane of 2 x 2 and a fine one of 4 x 4 over 80 x 80 pixels, with an end of line."""
    mine = Evidence(0, 60, 20, 80)
    row = np.array([0, 0, 1, 1, *np.repeat(range(4), 4), -1])
    col = np.array([0, 1, 0, 1, *np.tile(range(4), 4), -1])
    side = np.array([*[2] * 4, *[4] * 16, -1])
    image = np.zeros(21, np.int64)
    scores = evidence_over([mine], [(80, 80)], image, row, col, side, side)
    np.testing.assert_array_equal(scores[:4], evidence_scores([mine], 80, 80, 2, 2))
    np.testing.assert_array_equal(scores[4:20], evidence_scores([mine], 80, 80, 4, 4))
    assert set(np.argsort(-scores)[:2]) == {1, 4 + 3}
    assert scores[20] == 0.0


def test_evidence_over_two_images_in_any_order():
    there = Evidence(10, 10, 20, 20, image=1)
    row, col = (a.ravel() for a in np.mgrid[0:10, 0:10])
    image = np.repeat([0, 1], 100)
    places = [np.concatenate([row, row]), np.concatenate([col, col]), np.full(200, 10), np.full(200, 10)]
    scores = evidence_over([there], [(40, 40), (80, 80)], image, *places)
    assert scores.argmax() == 100 + 11
    order = np.random.default_rng(0).permutation(200)
    shuffled = evidence_over([there], [(40, 40), (80, 80)], image[order], *(place[order] for place in places))
    np.testing.assert_array_equal(shuffled, scores[order])


def test_evidence_over_refuses_tokens_without_a_place():
    one = np.ones(1, np.int64)
    with pytest.raises(ValueError, match="tokens must lie inside their planes"):
        evidence_over([], [(80, 80)], 0 * one, 4 * one, one, 4 * one, 4 * one)
    with pytest.raises(ValueError, match="every image must have a size; got 1 sizes for image 2"):
        evidence_over([], [(80, 80)], 2 * one, one, one, 4 * one, 4 * one)
