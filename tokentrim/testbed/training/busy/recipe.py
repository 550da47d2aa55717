"""The recipe of the busy pictures' model, every number of it that is not in `batch`.

The tower is not CLIP's: beside the contrastive loss of its [CLS] against captions that name the large things and the
grounds, linear read-outs tell every patch what it shows, without which small print is not learnt in hours on a CPU.

Look-ups ("color of house ?") come before pictures. Asked about pictures from the start, with answers as the only
labels, the model read signs after 2600 steps and still named the colour of any large thing, 57 %, which is chance: what
`alignment` had taught was forgotten meanwhile (the word nearest to a large thing's patch was its kind for 12 % of the
patches, 93 % before). On words instead of pictures, and with the question's last words labelled too, all look-ups stood
at 98 to 100 % after 4000 steps, a third of a second each; counting alike things alone took longer (77 %).

Small things had been drawn at any offset to the patches: 86 % of their kinds were told by a linear read-out of the
tower, 98 % when most of each lies in one patch, and the projected patches came within 0.03 of their words (0.2 before;
1 says nothing). Then 125 steps of `base` answered `busy-color` 97 %, `busy-there` 95 %, `busy-left` 99 %, `busy-sign`
99 %, `busy-where` 81 %, `busy-digit` 75 %.

The weights that ship saw all of `adapted` with descriptions that listed what is there alone, small things with their
places, and some of it under other rules still: until step 900 up to seven small things, any number of them alike, and a
learning rate of 1e-3; until step 1500 descriptions by size; and three `steps`, 2600 to 3900, of which the cosine
followed each in its turn. `finished` taught the descriptions as they are: F1 of 65 % before, 95 % after (calibration
questions). Its first 525 steps followed the cosine of 2400.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

from tokentrim.testbed.training.busy.model import TOKENS

FEW: Final = 40  # most tokens at the beginning of a stage that begins with few


QUESTIONS: Final = (
    "busy-ground", "busy-there", "busy-color", "busy-color", "busy-left", "busy-left", "busy-count-large", "reading",
    "reading", "busy-digit", "busy-digit", "busy-mark", "busy-mark", "busy-count-small", "busy-count-small",
    "busy-count-small", "busy-count-small", "busy-where", "busy-where", "help-color", "help-color", "help-where",
    "help-digit",
)  # fmt: skip
# At the end counting and describing are what is left to learn.
LAST: Final = (
    "busy-ground", "busy-there", "busy-color", "busy-left", "busy-count-large", "reading", "reading", "busy-digit",
    "busy-digit", "busy-mark", *("busy-count-small",) * 3, *("busy-where",) * 2,
)  # fmt: skip


@dataclass(frozen=True)
class BusyStage:
    """One stage. All durations are steps, so that a run does not depend on the machine's speed."""

    name: str
    kind: Literal["vision", "alignment", "words", "language"]
    steps: int
    batch: int
    rate: float  # peak learning rate
    after: str = ""  # stage whose weights this one starts from
    vision_rate: float = 0.0  # the tower's, of `alignment`
    projector_rate: float = 5e-4  # of stages about pictures, which leave the tower as it is
    warmup: int = 60
    final: float = 0.02  # learning rate at the end, relative to the peak
    decay: float = 0.03
    layers: int = 6
    full: float = 0.3  # share of the batches of which nothing is dropped
    # Steps with few tokens, first of all that there is to see. With all 256 from the start no sign was read after 975
    # steps; with 28 to 64 of them a third were after 350. Over as many steps again all of them come in.
    few: int = 0
    describe: float = 0.35  # share of the batches with a description
    questions: tuple[str, ...] = QUESTIONS

    def most_tokens(self, step: int) -> int:
        """Most visual tokens that go into the language model at a step."""
        behind = max(0, step - self.few) / max(1, self.few)
        return TOKENS if step >= 2 * self.few else int(FEW + (TOKENS - FEW) * behind)


DESCRIBE: Final = "busy-describe"
PLACES: Final = (0, 1, 3, 4, 6, 8)  # of the six trained layers among twelve

_BASE: Final = BusyStage("base", "language", after="alignment", steps=1200, batch=12, rate=7e-4, few=400)
_ADAPTED: Final = BusyStage(
    "adapted",
    "language",
    after="base",
    steps=3500,
    batch=12,
    rate=6e-4,
    layers=12,
    full=0.2,
    final=0.01,
    describe=1.0,
    questions=LAST,
)

STAGES: Final = (
    BusyStage("vision", "vision", steps=1200, batch=24, rate=1.5e-3, decay=0.02),
    BusyStage("words", "words", after="vision", steps=4000, batch=12, rate=2e-3, few=3000, full=0.1, describe=0.2),
    BusyStage("alignment", "alignment", after="words", steps=1600, batch=16, rate=2e-3, vision_rate=5e-4),
    _BASE,
    _ADAPTED,
    replace(_ADAPTED, name="finished", after="adapted", steps=1600, rate=5e-4),
)

# As base, but of every picture all tokens: what the dropping of tokens in training is worth. Nothing starts from it.
CONTROL: Final = replace(_BASE, name="control", few=0, full=1.0)
