"""The recipes of the architectures that start from the trained LLaVA testbed, every number of them."""

from dataclasses import replace
from typing import Final

from tokentrim.testbed.training.dropout import DropoutMix
from tokentrim.testbed.training.packing import AnswerWeights
from tokentrim.testbed.training.recipe import DEEP_LAYERS, QUESTIONS_ADAPTED, QUESTIONS_SOME, STAGES, Stage

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
