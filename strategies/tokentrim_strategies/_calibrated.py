"""What strategies share that follow a calibrated schedule: where it comes from, what it says, how they are called."""

from __future__ import annotations

from abc import ABC
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator, model_validator

from tokentrim import ModelShape, Schedule, Spatial, complaint, keep_count
from tokentrim.calibrate import MadeFor, falling, read_schedule
from tokentrim_strategies._keeping import check_boundary


class Calibrated(Spatial, ABC):
    """A spatial strategy whose schedule is written out, as ``rates`` or ``counts``, or read from a ``file``."""

    sources: ClassVar[tuple[str, ...]] = ("file", "rates", "counts")  # one of them says the schedule
    usual: ClassVar[str] = "rates"  # the one that has a default
    brought: ClassVar[tuple[str, ...]] = ("made_for",)  # what a file says besides

    if TYPE_CHECKING:
        file: Path | None
        rates: dict[int, float] | None
        counts: dict[int, int] | None
        made_for: MadeFor | None

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, data: Any) -> Any:
        """Read the file, or see to it that there is one schedule."""
        if not isinstance(data, dict):
            return data
        given = [key for key in cls.sources if data.get(key) is not None]
        beside = [key for key in cls.brought if given == ["file"] and data.get(key) is not None]
        if len(given) > 1 or beside or (not given and cls.usual in data):
            *most, last = cls.sources
            must = f"come from one place: {', '.join(most)} or {last}"
            hint = f"a file brings its own {' and '.join(cls.brought)}"
            raise ValueError(complaint(f"the schedule of strategy {cls.name!r}", must, given + beside, hint))
        others = {**data, cls.usual: None} if given and given != [cls.usual] else data
        if given == ["file"] and isinstance(data["file"], str | Path):
            found = read_schedule(Path(data["file"]))
            return {**others, **{key: getattr(found, key) for key in ("rates", "counts", *cls.brought)}}
        return others

    @field_validator("rates", "counts", check_fields=False)
    @classmethod
    def _falls(cls, value: dict[int, float] | None) -> dict[int, float] | None:
        return value if value is None else falling(value, f"of strategy {cls.name!r}")

    def kept(self, shape: ModelShape) -> dict[int, Fraction | float | int]:
        """Boundary -> share, or number, of visual tokens kept from there on, in a model that it was made for."""
        found: dict[int, Fraction | float | int] = {**(self.rates or self.counts or {})}
        if self.made_for is not None:
            self.made_for.require(shape, f"strategy {self.name!r}" + (f" with {self.file}" if self.file else ""))
        check_boundary(self, "the last boundary", max(found, default=0), shape)
        return found

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """What is kept, as counts, at those boundaries alone where it falls."""
        number = self.counts is not None
        counts, before = dict[int, int](), None if number else 1
        for boundary, kept in self.kept(shape).items():
            if kept != before:
                counts[boundary] = min(int(kept), n_visual) if number else keep_count(kept, n_visual)
            before = kept
        return Schedule.of(counts)

    def label(self) -> str:
        """The file's name where there is one, since its content is long."""
        return super().label() if self.file is None else f"{self.name}({self.file.name})"

    def spec(self) -> dict[str, Any]:
        """The content of the file rather than its name: what was run stays known when the file changes."""
        return {"name": self.name, **self.model_dump(mode="json", exclude={"file"}, exclude_none=True)}
