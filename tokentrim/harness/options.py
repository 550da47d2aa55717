"""What a user writes behind ``--model_args``: which model, which strategy, which budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tokentrim.config.specs import StrategySpec, strategy_from
from tokentrim.config.validation import check
from tokentrim.config.yaml_reader import Where
from tokentrim.contracts.sites import Need
from tokentrim.errors import complaint
from tokentrim.loading import DTypeName, Loaded

LONGEST_ANSWER: Final = 1024
_WHOM: Final = "the model arguments"


class HarnessOptions(BaseModel):
    """The model arguments, checked."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    pretrained: Any = Field(description="a registered model, such as testbed, a model folder, or an id of the hub")
    # Any to pydantic, because StrategySpec names a class that it imports late; the validator makes it a StrategySpec.
    strategy: Any = Field(description="what tokentrim run --strategy takes; none for the unpruned baseline")
    budget: float | None = Field(default=None, gt=0, le=1, description="share that the strategy's knob is solved for")
    match: Literal["layer_mean_ratio", "kv_ratio", "kv_read_ratio", "flops_ratio"] = Field(
        default="layer_mean_ratio", description="which share of the unpruned run the budget means"
    )
    new_tokens: int | None = Field(
        default=None, ge=1, description="typical length of an answer in tokens; shares of the cache are planned for it"
    )
    max_new_tokens: int = Field(default=LONGEST_ANSWER, ge=1, description="for tasks that set no limit")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    dtype: DTypeName = Field(default="auto", description="auto takes the one that the model was saved in")
    attn_implementation: str | None = Field(default=None, description="of transformers, such as sdpa or eager")
    device_map: str | None = Field(
        default=None, description="instead of device: auto, balanced, sequential or a device"
    )
    batch_size: int = Field(default=1, ge=1, description="questions answered at once")
    costs: str | None = Field(default=None, description="file for the realised costs")

    @field_validator("strategy", mode="plain")
    @classmethod
    def _build(cls, value: Any) -> StrategySpec:
        return strategy_from(value)

    @model_validator(mode="after")
    def _agree(self) -> HarnessOptions:
        spec = self.chosen
        if self.budget is not None and spec.budget is not None:
            raise ValueError(
                complaint("the budget", "be given once", "one in the model arguments and one in the strategy",
                          "take one of them out")
            )  # fmt: skip
        if self.ratios and spec.structure == "prune":
            raise ValueError(
                complaint("structure", "be keep where there is a budget", "prune",
                          "set the strategy's own parameters instead of a budget")
            )  # fmt: skip
        of_cache = sorted({"kv_ratio", "kv_read_ratio"} & set(self.ratios))
        if of_cache and self.new_tokens is None:
            raise ValueError(
                complaint("new_tokens of the model arguments", f"be given with a {of_cache[0]}", None,
                          "say how long answers typically are, in tokens")
            )  # fmt: skip
        if Need.EVIDENCE in spec.strategy.needed():
            raise ValueError(
                complaint(f"strategy {spec.strategy.label()!r}", "do without being told what an answer needs",
                          hint="benchmarks do not know; choose another strategy")
            )  # fmt: skip
        return self

    @property
    def chosen(self) -> StrategySpec:
        """The strategy, with a budget if its own text has one."""
        return self.strategy

    @property
    def model_name(self) -> str:
        """The model as the user named it, or where a loaded one came from."""
        given = self.pretrained
        return str(given.model.name_or_path) if isinstance(given, Loaded) else str(given)

    @property
    def ratios(self) -> dict[str, float]:
        """The share to solve the knob for, by its name; empty: the strategy runs as it is configured."""
        if self.budget is not None:
            return {self.match: self.budget}
        return {} if self.chosen.budget is None else dict(self.chosen.budget.ratios)


def read_options(arguments: Mapping[str, Any]) -> HarnessOptions:
    """Check the model arguments as lmms-eval hands them over: its own that are None mean that nobody set them.

    Raises:
        ConfigError: when one is unknown, missing or malformed; suggests the nearest name.
        TokentrimError: when the strategy is not one.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    # lmms-eval passes this one on to every model; sizes are never searched for here, so it has nothing to say.
    given.pop("max_batch_size", None)
    batch = given.get("batch_size")
    if isinstance(batch, str) and batch.isdigit():
        given["batch_size"] = int(batch)
    return check(HarnessOptions, given, _WHOM, Where())
