"""The testbed's eight tasks: questions about rendered scenes, their answers, and how answers are scored."""

import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product, zip_longest
from typing import Final

import numpy as np
from PIL import Image

from tokentrim.contracts.tasks import Evidence, Metric, Sample, Split, Task
from tokentrim.testbed.scenes import SQUARE, Canvas, Scene, SceneObject, draw_scenes, render
from tokentrim.testbed.vocabulary import COLORS, COLUMNS, GLYPHS, NOTHING, ROWS

FEWEST_OBJECTS: Final = 4
_SPLITS: Final[dict[Split, int]] = {"calibration": 1, "test": 2}
_TRAINING: Final = 3  # seeds of scenes to train on, beside those of the splits
_CHUNK: Final = 32  # scenes per seed; a constant, because it decides which scenes exist
_OTHER_WEIGHT: Final = 0.5


@dataclass(frozen=True)
class Asked:
    """A question about a scene: its text, its answer, the objects and perhaps the cell that it is about."""

    question: str
    answer: str
    objects: tuple[SceneObject, ...]
    cell: tuple[int, int] | None = None


Question = Callable[[np.random.Generator, Scene], Asked | None]


def _alone(rng: np.random.Generator, scene: Scene, key: Callable[[SceneObject], Hashable]) -> SceneObject | None:
    """One of the objects whose key no other object has."""
    often = Counter(map(key, scene.objects))
    found = [o for o in scene.objects if often[key(o)] == 1]
    return found[int(rng.integers(len(found)))] if found else None


def ask_color(rng: np.random.Generator, scene: Scene) -> Asked | None:
    """Colour of the only object with some glyph."""
    chosen = _alone(rng, scene, lambda o: o.glyph)
    return chosen and Asked(f"color of {chosen.glyph} ?", chosen.color, (chosen,))


def ask_what(rng: np.random.Generator, scene: Scene) -> Asked | None:
    """Glyph of the only object of some colour."""
    chosen = _alone(rng, scene, lambda o: o.color)
    return chosen and Asked(f"what is {chosen.color} ?", chosen.glyph, (chosen,))


def ask_count_color(rng: np.random.Generator, scene: Scene) -> Asked | None:
    """How many objects have some colour, which may be none of them."""
    colors = COLORS if rng.random() < 0.35 else [o.color for o in scene.objects]
    color = colors[int(rng.integers(len(colors)))]
    counted = tuple(o for o in scene.objects if o.color == color)
    return Asked(f"count {color} ?", str(len(counted)), counted)


def ask_count_all(rng: np.random.Generator, scene: Scene) -> Asked | None:
    """How many objects there are."""
    del rng
    return Asked("count all ?", str(len(scene.objects)), scene.objects)


def ask_at(rng: np.random.Generator, scene: Scene) -> Asked | None:
    """What is in a cell; in a quarter of the questions the cell is empty."""
    used = {(o.row, o.column): o for o in scene.objects}
    places = product(range(scene.canvas.rows), range(scene.canvas.columns))
    holes = [place for place in places if place not in used]
    cells = holes if rng.random() < 0.25 else list(used)
    row, column = cells[int(rng.integers(len(cells)))]
    question = f"at {ROWS[row]} {COLUMNS[column]} ?"
    chosen = used.get((row, column))
    if chosen is None:
        return Asked(question, NOTHING, (), (row, column))
    return Asked(question, f"{chosen.color} {chosen.glyph}", (chosen,))


def ask_where(rng: np.random.Generator, scene: Scene) -> Asked | None:
    """Cell of the only object with some colour and glyph."""
    chosen = _alone(rng, scene, lambda o: (o.color, o.glyph))
    if chosen is None:
        return None
    return Asked(f"where {chosen.color} {chosen.glyph} ?", f"{ROWS[chosen.row]} {COLUMNS[chosen.column]}", (chosen,))


def ask_list_all(rng: np.random.Generator, scene: Scene) -> Asked | None:
    """Colour and glyph of every object in reading order."""
    del rng
    return Asked("list all ?", " , ".join(f"{o.color} {o.glyph}" for o in scene.objects), scene.objects)


def ask_list_where(rng: np.random.Generator, scene: Scene) -> Asked | None:
    """Colour, glyph, row and column of every object in reading order."""
    del rng
    parts = (f"{o.color} {o.glyph} {ROWS[o.row]} {COLUMNS[o.column]}" for o in scene.objects)
    return Asked("list where ?", " , ".join(parts), scene.objects)


def exact(answer: str, prediction: str) -> float:
    """1 if the words are the same."""
    return float(answer.split() == prediction.split())


def list_f1(answer: str, prediction: str) -> float:
    """F1 of the listed objects; order does not count, an object with any wrong word is wrong."""
    true = Counter(" ".join(part.split()) for part in answer.split(",") if part.strip())
    said = Counter(" ".join(part.split()) for part in prediction.split(",") if part.strip())
    total = true.total() + said.total()
    return 2 * (true & said).total() / total if total else 1.0


def evidence_of(scene: Scene, asked: Asked) -> tuple[Evidence, ...]:
    """Regions of all objects, and of an empty cell that is asked about; less weight if not asked about."""
    boxes = [
        Evidence(o.top, o.left, o.bottom, o.right, weight=1.0 if o in asked.objects else _OTHER_WEIGHT)
        for o in scene.objects
    ]
    if asked.cell is not None:
        height, width = scene.canvas.cell_height, scene.canvas.cell_width
        top, left = asked.cell[0] * height, asked.cell[1] * width
        boxes.append(Evidence(top, left, top + height, left + width))
    return tuple(boxes)


class DrawnTask(Task):
    """Endless samples out of chunks, each drawn from a seed of its own; splits share no seed."""

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Sequence[Sample]:
        """The samples of one chunk, without ids. A scene that the question does not fit is left out."""

    def samples(self, split: Split, n: int) -> Sequence[Sample]:
        """The first n samples of a split; each task has scenes of its own."""
        if split not in _SPLITS:
            raise ValueError(f"split must be calibration or test; got {split!r}")
        found: list[Sample] = []
        chunk = 0
        while len(found) < n:
            found.extend(_chunk(self, _SPLITS[split], chunk))
            chunk += 1
        return [
            Sample(f"{self.name}/{split}/{i:04d}", s.images, s.question, s.answer, s.evidence)
            for i, s in enumerate(found[:n])
        ]

    def training(self, handful: int) -> Sequence[Sample]:
        """Scenes of their own, other ones in every handful."""
        return _chunk(self, _TRAINING, handful)

    def score(self, sample: Sample, prediction: str) -> float:
        """Exact match, or F1 of the listed parts."""
        return (exact if self.metric == "exact" else list_f1)(sample.answer, prediction)


@lru_cache(maxsize=256)
def _chunk(task: DrawnTask, split: int, chunk: int) -> tuple[Sample, ...]:
    """Samples of one seed."""
    return tuple(task.draw(np.random.default_rng([zlib.crc32(task.name.encode()), split, chunk])))


@dataclass(eq=False)
class SceneTask(DrawnTask):
    """One kind of question on endless scenes of 4 to 10 objects, on canvases in turn."""

    name: str
    ask: Question
    metric: Metric
    max_new_tokens: int
    description: str
    canvases: tuple[Canvas, ...] = (SQUARE,)

    def draw(self, rng: np.random.Generator) -> Sequence[Sample]:
        """Samples of canvas after canvas."""
        drawn: list[list[Sample]] = []
        for canvas in self.canvases:
            scenes = draw_scenes(rng, _CHUNK // len(self.canvases), FEWEST_OBJECTS, canvas.most, canvas)
            pictures = render(rng, scenes)
            samples: list[Sample] = []
            for i, pixels in enumerate(pictures):
                scene = scenes.scene(i)
                asked = self.ask(rng, scene)
                if asked is not None:
                    picture = Image.fromarray(pixels)
                    samples.append(Sample("", (picture,), asked.question, asked.answer, evidence_of(scene, asked)))
            drawn.append(samples)
        mixed = zip_longest(*drawn)  # one of every canvas in turn, so that any number of samples holds all sizes
        return [sample for row in mixed for sample in row if sample is not None]


def resized(task: SceneTask, name: str, canvases: tuple[Canvas, ...]) -> SceneTask:
    """The same questions about pictures of several sizes, in turn."""
    return SceneTask(name, task.ask, task.metric, task.max_new_tokens, task.description, canvases)


_glyphs, _colors = len(GLYPHS), len(COLORS)
TASKS: Final[dict[str, SceneTask]] = {
    task.name: task
    for task in (
        SceneTask("color", ask_color, "exact", 4, f"colour ({_colors}) of the object with a given glyph"),
        SceneTask("what", ask_what, "exact", 4, f"glyph ({_glyphs}) of the object with a given colour"),
        SceneTask("count-color", ask_count_color, "exact", 4, "number of objects of a given colour"),
        SceneTask("count-all", ask_count_all, "exact", 4, "number of all objects"),
        SceneTask("at", ask_at, "exact", 4, "object in a given cell, or nothing"),
        SceneTask("where", ask_where, "exact", 4, "cell of a given object"),
        SceneTask("list-all", ask_list_all, "f1", 34, "every object in reading order, 11 to 29 words"),
        SceneTask("list-where", ask_list_where, "f1", 56, "every object with its cell, 19 to 49 words"),
    )
}

# Sizes that every model of the testbed with dynamic resolution was trained on.
SIZES: Final = (SQUARE, Canvas(40, 80, rows=2), Canvas(80, 40, columns=2))
TASKS_SIZES: Final[dict[str, SceneTask]] = {
    f"{name}-sizes": resized(task, f"{name}-sizes", SIZES) for name, task in TASKS.items()
}
