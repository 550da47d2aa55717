"""A task's generation settings as lmms-eval writes them, and what ``generate`` is to be called with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tokentrim.errors import ConfigError, complaint

# Settings of sampling, which greedy search must not be given.
_SAMPLING: Final = ("temperature", "top_p", "top_k", "min_p", "typical_p")
# Settings of one model's own preprocessing (original LLaVA), and of the harness's loop over rounds: none of generate's.
_NOT_OURS: Final = frozenset({"image_aspect_ratio", "max_agentic_steps", "visual_cot"})


@dataclass(frozen=True)
class Generation:
    """How to answer.

    Attributes:
        max_new_tokens: limit of an answer.
        until: an answer ends before the first of these.
        settings: further keyword arguments of ``generate``.
        ignored: settings that mean nothing here, which the costs file names.
    """

    max_new_tokens: int
    until: tuple[str, ...]
    settings: Mapping[str, Any]
    ignored: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Equal for requests that one call of ``generate`` can answer."""
        return json.dumps([self.max_new_tokens, self.until, dict(self.settings)], sort_keys=True, default=repr)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken at every step."""
        return not self.settings["do_sample"] and self.settings["num_beams"] == 1

    def cut(self, text: str) -> str:
        """An answer up to the first of ``until``."""
        return text[: min((place for stop in self.until if (place := text.find(stop)) >= 0), default=len(text))]


def generation_of(given: Mapping[str, Any] | None, longest: int) -> Generation:
    """Read a task's ``generation_kwargs``.

    Args:
        given: as the task writes them; what is None is not set.
        longest: ``max_new_tokens`` where the task sets none.

    Raises:
        ConfigError: when they contradict each other.
    """
    rest = {name: value for name, value in (given or {}).items() if value is not None}
    until = [*_texts(rest.pop("until", ())), *_texts(rest.pop("stop_sequences", ()))]
    limits = [rest.pop(name) for name in ("max_new_tokens", "max_gen_toks") if name in rest]
    ignored = tuple(sorted(rest.keys() & _NOT_OURS))
    for name in ignored:
        del rest[name]
    sample = rest.pop("do_sample", None)
    warm = float(rest.get("temperature", 0.0)) > 0
    if sample and "temperature" in rest and not warm:
        raise ConfigError(
            complaint("the generation settings", "sample at a temperature above 0", rest["temperature"],
                      "set do_sample: false, or a temperature")
        )  # fmt: skip
    sample = warm if sample is None else bool(sample)
    settings: dict[str, Any] = {"num_beams": int(rest.pop("num_beams", 1)), **rest, "do_sample": sample}
    if not sample:
        # None overrides what the model's own generation config sets for sampling.
        settings |= dict.fromkeys(_SAMPLING[:3])
        settings = {name: value for name, value in settings.items() if name not in _SAMPLING[3:]}
    return Generation(int(limits[0]) if limits else longest, tuple(filter(None, until)), settings, ignored)


def _texts(value: Any) -> list[str]:
    """Stop texts, of which a single one needs no list."""
    return [value] if isinstance(value, str) else [str(text) for text in value]
