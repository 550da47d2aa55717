"""The recipes: the six stages of the testbed's training, and those of the models that start from it, every number."""

from dataclasses import dataclass, field, replace
from typing import Final, Literal

from tokentrim.testbed.training.dropout import DropoutMix
from tokentrim.testbed.training.packing import AnswerWeights

Kind = Literal["vision", "alignment", "distillation", "language"]


@dataclass(frozen=True)
class Stage:
    """One training stage. All durations are steps, so that a run does not depend on the machine's speed."""

    name: str
    kind: Kind
    steps: int
    batch: int  # pictures per step, over all processes
    rate: float  # peak learning rate
    after: str = ""  # stage whose weights this one starts from; none: random weights, or the warm start
    family: str = "llava"  # architecture
    warm: str = ""  # shipped model of another family whose weights this stage starts from, and its teacher
    vision_rate: float = 0.0  # of the vision tower, in language stages
    warmup: int = 60
    final: float = 0.02  # learning rate at the end, relative to the peak
    decay: float = 0.03
    layers: int = 6
    background: tuple[float, float] = (0.4, 0.4)  # weight of "not a centre", first and last step
    fewest: int = 4  # objects
    start_most: int = 10  # objects at the start of the curriculum
    easy_meter: str = "none"  # running loss below which the curriculum adds an object
    easy: float = 0.4
    captions: float = 1.0  # share of the batches that hold a caption
    questions: tuple[str, ...] = ()
    questions_some: tuple[str, ...] = ()  # where only some objects stay
    dropout: DropoutMix | None = None
    weights: AnswerWeights = field(default_factory=AnswerWeights)
    late_weights: AnswerWeights | None = None  # from step `late_from` on
    late_from: int = 0

    def weights_at(self, step: int) -> AnswerWeights:
        """Loss weights of a step."""
        return self.weights if self.late_weights is None or step < self.late_from else self.late_weights


QUESTIONS: Final = (
    "color", "color", "what", "what", "count-color", "count-color", "count-color", "count-all", "at", "at",
    "where", "where",
)  # fmt: skip
QUESTIONS_LOOKUP: Final = (
    "color", "color", "color", "color", "what", "count-color", "count-color", "count-all", "at", "at", "at", "at",
    "where", "where", "where", "where",
)  # fmt: skip
QUESTIONS_ADAPTED: Final = (
    "color", "color", "what", "what", "count-color", "count-color", "count-all", "at", "at", "where", "where",
    "where",
)  # fmt: skip
QUESTIONS_CONSOLIDATION: Final = (
    "color", "what", "what", "count-color", "count-color", "count-all", "at", "at", "where", "where", "where",
    "where", "where",
)  # fmt: skip
QUESTIONS_SOME: Final = (
    "color", "color", "what", "what", "count-color", "count-color", "at", "at", "at", "at", "where", "where",
    "where", "where", "where",
)  # fmt: skip

# Trained layers keep their order; the places between and above them start as identities. The last trained
# layer sits at 8, so that the deepest third is free of old duties.
DEEP_PLACES: Final = (0, 1, 3, 4, 6, 8)
DEEP_LAYERS: Final = 12

STAGES: Final = (
    Stage("vision", "vision", steps=1000, batch=64, rate=2e-3, decay=0.02, background=(0.1, 0.4), fewest=2),
    Stage("alignment", "alignment", after="vision", steps=350, batch=32, rate=3e-3, warmup=20, decay=0.0, fewest=6),
    Stage(
        "plain",
        "language",
        after="alignment",
        steps=3000,
        batch=16,
        rate=1.5e-3,
        vision_rate=3e-4,
        start_most=3,
        questions=QUESTIONS,
        weights=AnswerWeights(count_color=3.0, count_all=5.0),
        # Captions teach to see and to count first. Look-ups by glyph or by cell come later, and faster with more
        # weight on short answers: at step 1000 `color` stood at 31 % where `count-all` had 71 %.
        late_weights=AnswerWeights(caption=0.5, short=3.0, count_color=4.0, count_all=5.0),
        late_from=1200,
    ),
    # After `plain`, captions and counts were good and look-ups were not (`color` 34 %): its curriculum had followed
    # the captions' loss and reached ten objects before the first look-up was learnt. This stage goes back to four
    # objects, asks for look-ups, and adds objects as their answers get good.
    Stage(
        "lookup",
        "language",
        after="plain",
        steps=1200,
        batch=16,
        rate=1.5e-3,
        vision_rate=2e-4,
        warmup=40,
        start_most=4,
        easy_meter="short",
        easy=0.15,
        captions=0.4,
        questions=QUESTIONS_LOOKUP,
        weights=AnswerWeights(caption=0.4, short=3.0, count_color=3.0, count_all=4.0),
    ),
    Stage(
        "adapted",
        "language",
        after="lookup",
        steps=2600,
        batch=20,
        rate=1e-3,
        vision_rate=2e-4,
        warmup=80,
        final=0.01,
        layers=DEEP_LAYERS,
        questions=QUESTIONS_ADAPTED,
        questions_some=QUESTIONS_SOME,
        dropout=DropoutMix(),
        weights=AnswerWeights(caption=0.7, short=2.5, count_color=5.0, count_all=10.0),
    ),
    # Finishes the model without dropout: `lookup` had left one look-up half learnt (`where` 75 %).
    Stage(
        "consolidation",
        "language",
        after="lookup",
        steps=1200,
        batch=16,
        rate=1e-3,
        vision_rate=2e-4,
        warmup=40,
        start_most=6,
        easy_meter="short",
        easy=0.15,
        questions=QUESTIONS_CONSOLIDATION,
        weights=AnswerWeights(caption=0.7, short=2.5, count_color=3.0, count_all=4.0),
    ),
)

# ---------------------------------------------------------------------- architectures that start from the trained LLaVA

WARM_LAYERS: Final = DEEP_LAYERS + 2  # the two below read places from positions

_QWEN_EYES: Final = Stage(
    "qwen-distillation",
    "distillation",
    family="qwen2.5-vl",
    warm="testbed",
    steps=1300,
    batch=24,
    rate=2e-3,
    vision_rate=2e-3,
    decay=0.02,
    layers=WARM_LAYERS,
    background=(0.1, 0.4),
)
_QWEN_ANSWERS: Final = Stage(
    "qwen-adapted",
    "language",
    family="qwen2.5-vl",
    after="qwen-distillation",
    steps=2400,
    batch=16,
    rate=1e-3,
    vision_rate=2e-4,
    warmup=60,
    final=0.01,
    layers=WARM_LAYERS,
    questions=QUESTIONS_ADAPTED,
    questions_some=QUESTIONS_SOME,
    dropout=DropoutMix(deep_start=9),
    weights=AnswerWeights(caption=0.7, short=2.5, count_color=5.0, count_all=10.0),
)
_NEXT_EYES: Final = replace(
    _QWEN_EYES, name="next-distillation", family="llava-next", steps=1000, batch=32, vision_rate=1e-3
)
_NEXT_ANSWERS: Final = replace(
    _QWEN_ANSWERS, name="next-adapted", family="llava-next", after="next-distillation", steps=2600
)
# `next-adapted` had learnt to pass over the coarse plane: alone, it answered nothing. Here it is at times all there is.
_NEXT_PLANES: Final = replace(
    _NEXT_ANSWERS,
    name="next-planes",
    after="next-adapted",
    steps=1300,
    rate=7e-4,
    vision_rate=3e-4,
    dropout=DropoutMix(deep_start=9, coarse=0.25),
)

# Stages of each model that `train --model` knows.
RECIPES: Final[dict[str, tuple[Stage, ...]]] = {
    "llava": STAGES,
    "qwen2.5-vl": (_QWEN_EYES, _QWEN_ANSWERS),
    "llava-next": (_NEXT_EYES, _NEXT_ANSWERS, _NEXT_PLANES),
}


# Shipped models and the stages whose weights they hold.
SHIPPED: Final = {"testbed": "adapted", "testbed-plain": "consolidation"}


def scaled(stage: Stage, factor: float) -> Stage:
    """The same stage with fewer steps, for tests and trials."""
    steps, warmup, late_from = (max(1, round(n * factor)) for n in (stage.steps, stage.warmup, stage.late_from))
    return replace(stage, steps=steps, warmup=warmup, late_from=late_from)
