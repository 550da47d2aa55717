"""``layer-counts``: a keep rate for every layer, as a calibration (G-Search, P-Sigmoid) or the user found it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

from pydantic import Field, field_validator, model_validator

from tokentrim import LayerSite, ModelShape, Need, ReplacedBy, Schedule, SpatialScorer, Stage, complaint, keep_count
from tokentrim.calibrate import MadeFor, Query, falling, read_schedule
from tokentrim_strategies._keeping import check_boundary
from tokentrim_strategies._scores import text_row_mean

if TYPE_CHECKING:
    from torch import Tensor

_INLINE: Final = ("rates", "counts", "made_for")


class LayerCounts(SpatialScorer):
    """Keep a given share, or number, of the visual tokens from each boundary on; the most attended stay.

    Count at boundary b, of n visual tokens: ``floor(rates[b] n)``, exactly, or ``counts[b]``, never more than are left.
    Score of token j, with A the softmax over all keys in layer b-1, the previous layer, and H heads:

    - ``query="text"``: ``(1/(H T)) sum_h sum_i A[h, i, j]`` over the T text tokens i of the prompt;
    - ``query="last"``: ``(1/H) sum_h A[h, last, j]``, the row of FastV's code.

    This runs the per-layer keep rates of G-Search and P-Sigmoid, which ``tokentrim calibrate`` finds. From the paper:
    a keep rate for every layer, falling with depth, kept sets nested, rates found offline on calibration data. It
    comes without code, and its formula for the score was not available to us: both rows, and the use of the previous
    layer, are our **reconstruction**, as is the search. Original position ids stay (ours).

    When it fails: rates found on one model or kind of question need not suit another; a schedule file knows the sizes
    of its model and refuses others, but not other questions. The ranking has the failures of ``fastv`` and ``pvtp``.

    Cost: rows of attention in every layer before a cut, O(N d) per query row, beside the fused kernel. A curve that
    falls at each boundary pays in each layer; a boundary at which nothing falls costs nothing.

    Parameters: either ``file``, or ``rates`` (boundary -> share of all visual tokens) or ``counts`` (boundary ->
    tokens per prompt) with ``query`` and perhaps ``made_for`` (sizes of the model). The default has FastV's
    counts: half of the tokens from boundary 2 on.

    ```bibtex
    @inproceedings{zhao2025searching, booktitle={CVPR}, year={2025}, note={arXiv:2412.00556},
      title={Accelerating Multimodal Large Language Models by Searching Optimal Vision Token Reduction},
      author={Zhao, Shiyu and Wang, Zhenting and Juefei-Xu, Felix and Xia, Xide and Liu, Miao and Wang, Xiaofang and
              Liang, Mingfu and Zhang, Ning and Metaxas, Dimitris N. and Yu, Licheng}}
    ```
    """

    name: ClassVar[str] = "layer-counts"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LAST_ROW, Need.TEXT_ROWS})

    file: Path | None = Field(default=None, description="schedule file (YAML) that tokentrim calibrate wrote")
    rates: Annotated[dict[int, float] | None, ReplacedBy()] = Field(
        default={2: 0.5}, description="boundary -> share of all visual tokens kept from there on"
    )
    counts: dict[int, int] | None = Field(
        default=None, description="boundary -> visual tokens kept per prompt, instead of rates"
    )
    query: Query = Field(
        default="text", description="whose attention ranks: the mean of all text tokens, or the last prompt token's"
    )
    made_for: MadeFor | None = Field(default=None, description="sizes of the model; any other is refused")

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, data: Any) -> Any:
        """Read the file, or see to it that rates and counts are not both there."""
        if not isinstance(data, dict):
            return data
        given = [key for key in ("file", "rates", "counts") if data.get(key) is not None]
        if len(given) > 1 or (given == ["file"] and any(key in data for key in (*_INLINE, "query"))):
            raise ValueError(
                complaint(
                    f"the schedule of strategy {cls.name!r}",
                    "come from one place: file, rates or counts",
                    sorted(key for key in data if key in ("file", "query", *_INLINE)),
                    "a file brings its own query and sizes",
                )
            )
        if given == ["file"] and isinstance(data["file"], str | Path):
            found = read_schedule(Path(data["file"]))
            taken = {key: getattr(found, key) for key in (*_INLINE, "query")}
            return {**data, **taken}
        return {**data, "rates": None} if given == ["counts"] else data

    @field_validator("rates", "counts")
    @classmethod
    def _falls(cls, value: dict[int, float] | None) -> dict[int, float] | None:
        return value if value is None else falling(value, f"of strategy {cls.name!r}")

    def needed(self) -> frozenset[Need]:
        """The one kind of row that ``query`` reads."""
        return frozenset({Need.LAST_ROW if self.query == "last" else Need.TEXT_ROWS})

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """The counts, at those boundaries alone where rates or counts fall."""
        whom = f"strategy {self.name!r}" + (f" with {self.file}" if self.file is not None else "")
        if self.made_for is not None:
            self.made_for.require(shape, whom)
        check_boundary(self, "the last boundary", max(self.rates or self.counts or {}), shape)
        found: dict[int, int] = {}
        before: float | None = 1.0 if self.rates is not None else None
        for boundary, kept in (self.rates or self.counts or {}).items():
            if kept != before:
                found[boundary] = keep_count(kept, n_visual) if self.rates is not None else min(int(kept), n_visual)
            before = kept
        return Schedule.of(found)

    def score(self, site: LayerSite) -> Tensor:
        """Attention in the previous layer, mean over heads (and over text tokens)."""
        return site.last_row.mean(dim=1) if self.query == "last" else text_row_mean(site)

    def label(self) -> str:
        """The file's name where there is one, since its content is long."""
        return super().label() if self.file is None else f"{self.name}({self.file.name})"

    def spec(self) -> dict[str, Any]:
        """The content of the file rather than its name: what was run stays known when the file changes."""
        values = self.model_dump(mode="json", exclude={"file"}, exclude_none=True)
        return {"name": self.name, **values}
