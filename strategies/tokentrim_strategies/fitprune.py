"""``fitprune``: a few visual tokens go behind almost every layer, those that image and question attend to least."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

from pydantic import Field, field_validator, model_validator

from tokentrim import LayerSite, ModelShape, Need, ReplacedBy, Schedule, SpatialScorer, Stage, complaint, keep_count
from tokentrim.calibrate import MadeFor, falling, read_schedule
from tokentrim_strategies._keeping import check_boundary

if TYPE_CHECKING:
    from torch import Tensor

_DEPTH: Final = 32
_TOKENS: Final = 576
_DELETED: Final = {
    0: (),
    10: (0, 0, 1, 2, 1, 0, 1, 4, 5, 5, 11, 4, 2, 2, 0, 0, 1, 1, 2, 4, 2, 10, 1, 1, 1, 2, 1, 1, 0, 1),
    20: (0, 0, 3, 3, 1, 1, 4, 16, 14, 15, 24, 4, 2, 3, 2, 0, 6, 0, 5, 13, 4, 19, 2, 1, 1, 1, 1, 1, 2, 1),
    30: (0, 0, 7, 6, 4, 5, 16, 40, 24, 21, 24, 4, 2, 3, 4, 0, 16, 0, 11, 26, 6, 32, 3, 1, 0, 1, 2, 2, 4),
    40: (0, 1, 21, 13, 14, 11, 41, 53, 29, 15, 14, 5, 1, 4, 5, 1, 26, 1, 13, 28, 6, 27, 2, 1, 0, 0, 1, 1, 2),
    50: (3, 7, 49, 24, 29, 17, 59, 41, 26, 8, 10, 6, 2, 5, 7, 2, 30, 3, 13, 27, 5, 23, 2, 1, 0, 0, 1, 1, 2),
    55: (6, 17, 69, 31, 34, 19, 59, 30, 23, 6, 8, 7, 2, 5, 8, 2, 29, 4, 12, 25, 4, 19, 2, 1, 0, 0, 1, 0, 1),
    60: (14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5, 2, 5, 7, 4, 26, 5, 11, 24, 4, 18, 2, 1, 0, 0, 1, 0, 1),
    70: (48, 79, 118, 41, 33, 17, 36, 9, 9, 2, 3, 2, 1, 3, 4, 8, 18, 7, 8, 20, 4, 13, 2, 1, 0, 0, 1, 0, 1),
    80: (128, 127, 118, 35, 26, 8, 13, 3, 2, 1, 0, 0, 0, 2, 1, 8, 7, 8, 5, 11, 2, 6, 1, 1, 0, 0, 0, 1),
    90: (262, 153, 80, 19, 13, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 1, 2, 0, 1, 0, 0, 0, 0, 0, 1),
}
"""Per cent of FLOPs cut -> visual tokens of LLaVA-1.5-7B that are deleted in layer 0, 1, ...; published (a fact)."""
_SCHEDULES: Final = ("file", "rates", "counts")


class FitPrune(SpatialScorer):
    """Delete the visual tokens that are looked at least, by the image and by the question, behind almost every layer.

    With A[i, j] the largest attention of all heads from query i to visual token j in the layer before the cut, n visual
    tokens left: ``score(j) = (1/n sum of A[i, j] over visual i) (sum of A[i, j] over the text i behind the image)``;
    the lowest go. How many go where is fixed beforehand, by a recipe for a share of the FLOPs:

    - ``flops_cut``: the recipes that the authors published for LLaVA-1.5-7B, at .1, .2, ..., .5, .55, .6, ..., .9 of
      the visual tokens' FLOPs; linear between them, as shares of the visual tokens, and in a model of L layers the cut
      before layer b is that before layer ``floor(32 b / L)`` of 32 (ours). By our count, behind whole layers, they cut
      two points less than they say, and those of .1 and .2 cut .06 and .15. On another model, calibrate;
    - ``file``: a schedule that ``tokentrim calibrate fitprune`` found, or ``rates`` or ``counts`` written out.

    Follows the released code but for one thing: there tokens leave *inside* a layer, behind its attention, so that its
    feed-forward part no longer sees them; here they leave behind the whole layer. What later layers see is the same;
    the layer of the cut computes them once more, and the last layer deletes nothing. The cache of that layer holds them
    either way. Original positions stay, as in the code. Text in front of the image has no say. Several images share
    one ranking, and the question is the text behind the last (ours).

    When it fails: sums over causal rows favour the top of the raster, which more queries see; a recipe fits the model
    and the kind of question that it was made on; what goes in the first layers goes before the question has been read.
    A port elsewhere keeps the lowest instead, so numbers printed for "FitPrune" need a look at who ran it.

    Cost: attention of all queries in every layer before a cut, O(T N d) each, in blocks beside the fused kernel, where
    the released code holds whole maps.

    Parameters: ``flops_cut`` (share of the visual tokens' FLOPs in the decoder), or ``file``, ``rates`` (boundary ->
    share of all visual tokens) or ``counts`` (boundary -> tokens per prompt), with ``made_for`` (sizes of the model).

    ```bibtex
    @inproceedings{ye2025fitprune,
      title={Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models},
      author={Ye, Weihao and Wu, Qiong and Lin, Wenhao and Zhou, Yiyi},
      booktitle={Proceedings of the AAAI Conference on Artificial Intelligence},
      year={2025},
      note={arXiv:2409.10197}
    }
    ```
    """

    name: ClassVar[str] = "fitprune"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.HEAD_PEAKS})
    budget_knob: ClassVar[str | None] = "flops_cut"

    flops_cut: Annotated[float | None, ReplacedBy(), Field(ge=0, le=0.9, allow_inf_nan=False)] = Field(
        default=0.6, description="share of the visual tokens' FLOPs that goes, by the published recipes"
    )
    file: Path | None = Field(default=None, description="schedule file (YAML) that tokentrim calibrate wrote")
    rates: dict[int, float] | None = Field(
        default=None, description="boundary -> share of all visual tokens kept from there on"
    )
    counts: dict[int, int] | None = Field(default=None, description="boundary -> visual tokens kept per prompt")
    made_for: MadeFor | None = Field(default=None, description="sizes of the model; any other is refused")

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, data: Any) -> Any:
        """Read the file, or see to it that there is one schedule."""
        if not isinstance(data, dict):
            return data
        given = [key for key in ("flops_cut", *_SCHEDULES) if data.get(key) is not None]
        none = not given and "flops_cut" in data
        if none or len(given) > 1 or (given == ["file"] and data.get("made_for") is not None):
            raise ValueError(
                complaint(
                    f"the schedule of strategy {cls.name!r}",
                    "come from one place: flops_cut, file, rates or counts",
                    given,
                    "a file brings its own sizes",
                )
            )
        if given == ["file"] and isinstance(data["file"], str | Path):
            found = read_schedule(Path(data["file"]))
            return {**data, "flops_cut": None, **{key: getattr(found, key) for key in ("rates", "counts", "made_for")}}
        return {**data, "flops_cut": None} if given and given != ["flops_cut"] else data

    @field_validator("rates", "counts")
    @classmethod
    def _falls(cls, value: dict[int, float] | None) -> dict[int, float] | None:
        return value if value is None else falling(value, f"of strategy {cls.name!r}")

    def kept(self, shape: ModelShape) -> dict[int, Fraction | float | int]:
        """Boundary -> share, or number, of visual tokens kept, at those boundaries alone where it falls."""
        found: dict[int, Fraction | float | int] = {**(self.rates or self.counts or {})}
        if self.flops_cut is None:
            whom = f"strategy {self.name!r}" + (f" with {self.file}" if self.file is not None else "")
            if self.made_for is not None:
                self.made_for.require(shape, whom)
            check_boundary(self, "the last boundary", max(found, default=0), shape)
        else:
            line = _kept(Fraction(str(self.flops_cut)))
            found = {b: line[b * _DEPTH // shape.n_layers] for b in range(1, shape.n_layers)}
        steps = [*found.items()]
        whole = steps[:1] if self.counts is not None or (steps and steps[0][1] != 1) else []
        return dict(whole + [here for before, here in pairwise(steps) if here[1] != before[1]])

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """What is kept, as counts."""
        number = self.counts is not None
        counts = {
            b: min(int(kept), n_visual) if number else keep_count(kept, n_visual)
            for b, kept in self.kept(shape).items()
        }
        return Schedule.of(counts)

    def score(self, site: LayerSite) -> Tensor:
        """Attention from the image times attention from the question, each of the head that gives the most."""
        import torch

        image, question = site.head_peaks.unbind(dim=1)
        left = torch.tensor(site.n_visual, device=site.device).clamp(min=1).unsqueeze(1)
        return image / left * question

    def label(self) -> str:
        """The file's name where there is one, since its content is long."""
        return super().label() if self.file is None else f"{self.name}({self.file.name})"

    def spec(self) -> dict[str, Any]:
        """The content of the file rather than its name: what was run stays known when the file changes."""
        return {"name": self.name, **self.model_dump(mode="json", exclude={"file"}, exclude_none=True)}


def _kept(cut: Fraction) -> list[Fraction]:
    """Share of the visual tokens that each of 32 layers sees at a share of FLOPs cut: linear between two recipes."""
    percent = cut * 100
    low, high = max(p for p in _DELETED if p <= percent), min(p for p in _DELETED if p >= percent)
    part = (percent - low) / (high - low) if high > low else Fraction(0)
    shares: list[Fraction] = []
    for layer in range(_DEPTH):
        below, above = (_TOKENS - sum(_DELETED[table][:layer]) for table in (low, high))
        shares.append((below + part * (above - below)) / _TOKENS)
    return shares
