"""Architectures with dynamic resolution: the training-time passes are transformers' own; a few steps of each train."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tokentrim.errors import UnknownNameError
from tokentrim.testbed.scenes import SQUARE, Canvas, draw_scenes, render
from tokentrim.testbed.training.checkpoint import Checkpoint
from tokentrim.testbed.training.distil import PLACING, load_teacher, teacher_tokens, warm_start
from tokentrim.testbed.training.dropout import DropoutPlan, draw_priorities
from tokentrim.testbed.training.families import FAMILIES, family_of
from tokentrim.testbed.training.family import LLAVA
from tokentrim.testbed.training.forward import run_packed
from tokentrim.testbed.training.losses import NOT_A_GLYPH, UNJUDGED, patch_targets
from tokentrim.testbed.training.packing import AnswerWeights, pack
from tokentrim.testbed.training.processors import build_processor
from tokentrim.testbed.training.recipe import RECIPES
from tokentrim.testbed.training.stage import StageOptions
from tokentrim.testbed.training.train import train
from tokentrim.testbed.training.view import fine_centre, holds_centre, overlap
from tokentrim.testbed.vocabulary import IDS

WARM = ("qwen2.5-vl", "llava-next")
EVERY = [(name, canvas) for name in FAMILIES for canvas in FAMILIES[name].canvases]
everywhere = pytest.mark.parametrize(("name", "canvas"), EVERY, ids=lambda v: v if isinstance(v, str) else None)
warm = pytest.mark.parametrize("name", WARM)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def untrained():
    models = {}
    for name, family in FAMILIES.items():
        torch.manual_seed(0)
        models[name] = family.build(3).eval()
    return models


def drawn(canvas, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    scenes = draw_scenes(rng, batch, 3, canvas.most, canvas)
    return rng, scenes, render(rng, scenes)


def sizes_of(name, canvas, batch):
    """What transformers' own model wants beside pixels."""
    match name:
        case "qwen2.5-vl":
            return {"image_grid_thw": torch.tensor([[1, canvas.height // 4, canvas.width // 4]] * batch)}
        case "llava-next":
            return {"image_sizes": torch.tensor([[canvas.height, canvas.width]] * batch)}
        case _:
            return {}


@everywhere
@torch.no_grad()
def test_packed_segment_equals_transformers_own_forward(name, canvas, untrained):
    """Vision pass, order of tokens, placeholders and positions at once."""
    family, model = FAMILIES[name], untrained[name]
    view = family.view(canvas)
    rng, scenes, pictures = drawn(canvas)
    pixels = family.pixels(pictures, view)
    packed = pack(rng, scenes, ("where", "count-all"), "list-all", None, AnswerWeights())
    out = run_packed(model, pixels, packed, DropoutPlan(), torch.zeros(2, view.tokens), family, view).logits
    first = packed.lengths[0]
    prompt = [*view.start, *[IDS["<image>"]] * view.tokens, *view.end]
    ids = torch.cat([torch.tensor([prompt] * 2), packed.ids[:, :first]], 1)
    extra = sizes_of(name, canvas, 2)
    if name == "qwen2.5-vl":
        pixels, extra["mm_token_type_ids"] = pixels.flatten(0, 1), (ids == IDS["<image>"]).int()
    alone = model(input_ids=ids, pixel_values=pixels, **extra).logits[:, len(prompt) :]
    torch.testing.assert_close(out[:, :first], alone, rtol=1e-4, atol=1e-4)


@everywhere
def test_processor_and_training_agree(name, canvas):
    family = FAMILIES[name]
    view, processor = family.view(canvas), build_processor(family)
    picture = drawn(canvas)[2][:1]
    content = [{"type": "image", "image": Image.fromarray(picture[0])}, {"type": "text", "text": "count ?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = family.words
    text = [ids[word] for word in ("count", "?", "assistant:")]
    assert inputs["input_ids"].tolist() == [[*view.start, *[ids["<image>"]] * view.tokens, *view.end, *text]]
    mine = family.pixels(picture, view).flatten()
    if name == "llava-next":  # the shrunk picture depends on who shrinks it, by a few levels of 255
        coarse, level = 3 * 40 * 40, 1 / 255 / 0.25
        shrunk = inputs["pixel_values"].flatten()[:coarse]
        torch.testing.assert_close(shrunk, mine[:coarse], rtol=0, atol=8 * level)
        mine = mine[coarse:]
    theirs = inputs["pixel_values"].flatten()[-len(mine) :]
    torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-5)


@everywhere
def test_every_object_has_one_fine_token(name, canvas):
    view = FAMILIES[name].view(canvas)
    _, scenes, _ = drawn(canvas, 16)
    holds, touched = holds_centre(scenes, view), overlap(scenes, view)
    assert ((holds & view.fine).sum(2) == scenes.present).all()
    planes = 1 + int(view.plane.max())
    assert (holds.sum(2) == scenes.present * planes).all()
    np.testing.assert_allclose(touched.sum(2), scenes.present * planes * 100, rtol=1e-5)
    assert not touched[:, :, view.structure].any()
    targets = patch_targets(scenes, view)
    assert targets.centre.sum(1).tolist() == scenes.count.tolist()
    assert set(targets.glyph[:, torch.from_numpy(~view.fine)].unique().tolist()) <= {UNJUDGED}
    assert (targets.glyph == NOT_A_GLYPH).any()
    centre = fine_centre(scenes, view)[scenes.present]
    cell = scenes.cell[scenes.present]
    near = (view.cell_row.numpy()[centre] - cell // 4, view.cell_column.numpy()[centre] - cell % 4)
    assert all(set(np.unique(side)) <= {-1, 0, 1} for side in near)


def test_grid_of_a_tiled_view():
    view = FAMILIES["llava-next"].view(Canvas(64, 80, cell_height=16))
    row, column, rows, columns = view.grid
    assert view.tokens == 25 + 8 * 11
    assert view.pictorial == 25 + 8 * 10
    assert {*zip(rows.tolist(), columns.tolist(), strict=True)} == {(5, 5), (8, 10), (-1, -1)}
    assert (row[view.structure] == -1).all()
    assert row[view.plane == 1][:11].tolist() == [*[0] * 10, -1]
    assert column[:6].tolist() == [0, 1, 2, 3, 4, 0]
    assert sorted(set(view.tile.tolist())) == [0, 1, 2, 3, 4]


@everywhere
def test_structure_is_never_dropped(name, canvas):
    view = FAMILIES[name].view(canvas)
    rng, scenes, _ = drawn(canvas)
    for mode in ("keep-all", "keep-some", "anything"):
        priority, _ = draw_priorities(rng, scenes, DropoutPlan(mode, {0: 5}), view)
        structure = int(view.structure.sum())
        top = np.argsort(-priority, axis=1)[:, :structure]
        assert view.structure[top].all()


@warm
@torch.no_grad()
def test_dropping_depends_on_order_only(name, untrained):
    family, model = FAMILIES[name], untrained[name]
    view = family.view(family.canvases[1])
    rng, scenes, pictures = drawn(view.canvas)
    packed = pack(rng, scenes, ("where",), None, None, AnswerWeights())
    plan = DropoutPlan("keep-all", {0: 30, 2: 12})
    priority = torch.from_numpy(draw_priorities(rng, scenes, plan, view)[0])
    pixels = family.pixels(pictures, view)
    run = lambda p, order: run_packed(model, pixels, packed, p, order, family, view).logits  # noqa: E731
    out = run(plan, priority)
    torch.testing.assert_close(out, run(plan, priority.double().argsort(-1).argsort(-1).float()))
    assert not torch.allclose(out, run(DropoutPlan("keep-all", {0: 30}), priority))


@warm
@torch.no_grad()
def test_warm_start_is_the_teacher_on_text(name):
    """Copied layers compute the same on words: M-RoPE with equal rows is plain RoPE, zero biases are none."""
    teacher = load_teacher("testbed").model
    torch.manual_seed(1)
    layers = len(teacher.model.language_model.layers)
    model = FAMILIES[name].build(layers + PLACING).eval()
    warm_start(model, "testbed")
    ids = torch.randint(5, 62, (2, 40))
    mine, theirs = (m(input_ids=ids).logits for m in (model, teacher))
    torch.testing.assert_close(mine[..., : theirs.shape[-1]][..., :62], theirs[..., :62], rtol=1e-4, atol=1e-4)


@warm
def test_teacher_keeps_every_pixel_in_its_place(name):
    family = FAMILIES[name]
    teacher = load_teacher("testbed")
    for canvas in (SQUARE, family.canvases[1]):
        view = family.view(canvas)
        _, scenes, pictures = drawn(canvas)
        tokens, known = teacher_tokens(teacher, pictures, view)
        assert known.all()
        square = np.pad(pictures, ((0, 0), (0, 80 - canvas.height), (0, 80 - canvas.width), (0, 0)), mode="edge")
        whole_view = LLAVA.view(SQUARE)
        whole = LLAVA.encode(teacher.model, LLAVA.pixels(square, whole_view), whole_view).visual
        mine = np.flatnonzero(view.fine).searchsorted(fine_centre(scenes, view))
        theirs = fine_centre(scenes, whole_view)
        for row, slot in zip(*np.nonzero(scenes.present), strict=True):
            torch.testing.assert_close(tokens[row, mine[row, slot]], whole[row, theirs[row, slot]])


def test_families_by_configuration(untrained):
    for name, model in untrained.items():
        assert family_of(model) is FAMILIES[name]
    with pytest.raises(ValueError, match="model type of a testbed model must be one of llava, qwen2_5_vl, llava_next"):
        family_of(torch.nn.Module.__new__(_Other))
    with pytest.raises(ValueError, match="canvas of a LLaVA testbed must be"):
        LLAVA.view(Canvas(40, 80, rows=2))


class _Other(torch.nn.Module):
    class config:
        model_type = "gemma"


@pytest.mark.recipe
@pytest.mark.slow
@warm
def test_a_few_steps_of_each_stage(name, tmp_path, monkeypatch):
    """Both stages run, go on after a stop exactly as without one, and the first one's loss falls."""
    short = {m: tuple(replace(s, steps=6, batch=2, warmup=1) for s in stages) for m, stages in RECIPES.items()}
    for module in ("stage", "train"):
        monkeypatch.setattr(f"tokentrim.testbed.training.{module}.RECIPES", short)
    options = StageOptions(run=tmp_path / "whole", model=name, log_every=1, probe_every=0)
    train(options)
    for stage in short[name]:
        for _ in range(2):
            train(replace(options, run=tmp_path / "halves", stage=stage.name, stop_after=3))
        whole, resumed = (Checkpoint.load(tmp_path / run / f"{stage.name}.pt") for run in ("whole", "halves"))
        assert whole.progress.step == resumed.progress.step == 6
        for key, value in whole.model.items():
            torch.testing.assert_close(value, resumed.model[key], rtol=0, atol=0, msg=f"{stage.name}: {key}")
    records = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    losses = [r["meters"]["loss"] for r in records if r["stage"] == short[name][0].name]
    assert losses[-1] < losses[0]


def test_unknown_recipe(tmp_path):
    with pytest.raises(UnknownNameError, match=r"got 'gemma'. Known: llava, llava-next, qwen2.5-vl"):
        train(StageOptions(run=tmp_path, model="gemma"))
