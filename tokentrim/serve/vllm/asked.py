"""What is asked of vLLM: a strategy, written and checked as everywhere, and refused by name where vLLM has no way.


The server's is in ``hf_overrides``, a request's in ``mm_processor_kwargs``, both under the key ``tokentrim``. It
travels to the process that runs the model as text, beside the pixels that it is about.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, get_args, get_origin

import torch
from torch import Tensor

from tokentrim.config.specs import StrategySpec, TrimConfig, Where, resolve, strategy_from
from tokentrim.config.validation import check
from tokentrim.contracts import fits
from tokentrim.contracts.adapter import Adapter, Layout
from tokentrim.contracts.fits import Decision
from tokentrim.contracts.sites import FROM_TOWER, Need
from tokentrim.contracts.strategy import Spatial, Strategy
from tokentrim.counting.shape import ModelShape
from tokentrim.errors import ConfigError, UnsupportedError, complaint
from tokentrim.loading import require_supported
from tokentrim.plugins.loader import registry
from tokentrim.serve.vllm.families import SERVED

KEY: Final = "tokentrim"
"""The one name in ``hf_overrides`` and in ``mm_processor_kwargs``."""
_UNASKED: Final = "vLLM encodes a picture, and keeps it for others, before it knows the question"
_UNSERVED: Final = {
    Need.TEXT_EMBEDS: _UNASKED,
    Need.TEXT_IDS: _UNASKED,
    Need.TEXT: _UNASKED,
    Need.TEXT_HIDDEN: _UNASKED,
    Need.GUIDE: "no second model answers first in vLLM",
    Need.EVIDENCE: "no task tells vLLM what is relevant",
    Need.TOWER_GROUPS: "vLLM's own towers run, whose blocks merge nothing",
    Need.FINAL_NORM: "vLLM's own decoder runs, whose parts are not read",
}
"""What a boundary may ask of a model in ``generate``, and not in vLLM, with the reason."""


@dataclass(frozen=True)
class PrunedFamily:
    """What is known of a model from its config alone.

    Attributes:
        adapter: of its family.
        layout: what the adapter finds in a copy without weights.
    """

    adapter: Adapter
    layout: Layout

    @classmethod
    def of(cls, config: Any) -> PrunedFamily:
        """The family of a model's config (transformers').

        Raises:
            UnsupportedError: when it is none that is pruned inside vLLM.
        """
        kind = getattr(config, "model_type", None)
        if kind not in SERVED:
            raise UnsupportedError(
                complaint("a model that is pruned inside vLLM", f"be of a family among {', '.join(SERVED)}", kind,
                          "take tokentrim out of hf_overrides, or use tokentrim.trim, which knows more families")
            )  # fmt: skip
        from transformers import AutoModelForImageTextToText  # takes seconds, and is there where vLLM is

        adapter: Adapter = registry("adapter").get(require_supported(kind, "the model that vLLM serves"))()
        auto_model: Any = AutoModelForImageTextToText
        with torch.device("meta"):
            return cls(adapter, adapter.locate(auto_model.from_config(copy.deepcopy(config))))

    @property
    def shape(self) -> ModelShape:
        """The model's numbers."""
        return self.layout.shape


def of_server(given: Any, place: str = f"hf_overrides.{KEY}") -> StrategySpec:
    """The strategy of a whole server.

    Args:
        given: what ``hf_overrides`` says: ``{"strategy": ...}``, where that is all that configurations may say.
        place: where it says so, for messages.

    Raises:
        ConfigError: when it says anything else; names the key, and the nearest one that there is.
        UnknownNameError: when no strategy has that name.
    """
    where = Where(path=tuple(place.split(".")))
    if not isinstance(given, Mapping):
        what = complaint(
            place, "be a mapping with the key 'strategy'", given, "write {'strategy': {'name': 'divprune'}}"
        )
        raise ConfigError(what)
    config = check(TrimConfig, given, place, where, context=where)
    if config.model is not None:
        raise where.at("model").error(complaint("the model", "be named by vLLM's own argument", config.model))
    if config.structure == "prune":
        raise where.at("structure").error(
            complaint("structure", "be keep in vLLM, where line ends stay", "prune", "leave it out")
        )
    return config.chosen


def of_request(given: Any) -> StrategySpec:
    """The strategy of one request, which may read no file of the server's.

    Raises:
        ConfigError: as :func:`of_server`, and for whatever may name a file.
        UnknownNameError: when no strategy has that name.
    """
    place = f"mm_processor_kwargs.{KEY}"
    said = given.get("strategy") if isinstance(given, Mapping) else None
    if said is not None and not isinstance(said, Mapping):
        raise ConfigError(
            complaint(f"{place}.strategy", "be a mapping with a registered name", said, "write {'name': 'divprune'}")
        )
    _require_plain(said)
    return of_server(given, place)


def _require_plain(said: Any) -> None:
    """Refuse text among the parameters of a request, unless a parameter lists the words that it takes.

    What a strategy reads, it may read while it is built; so this comes first.
    """
    values: list[Any] = [*said.values()] if isinstance(said, Mapping) else [*said] if isinstance(said, list) else []
    for inner in values:
        _require_plain(inner)
    name = said.get("name") if isinstance(said, Mapping) else None
    if not isinstance(name, str) or name not in registry("strategy"):
        return
    fields = registry("strategy").get(name).model_fields
    given: Any = said
    for key, value in given.items():
        if key in fields and isinstance(value, str) and not _lists_words(fields[key].annotation):
            raise ConfigError(
                complaint(f"{key} of strategy {name!r} in a request", "not be set: it may name a file", value,
                          "set it for the whole server, in hf_overrides")
            )  # fmt: skip


def _lists_words(annotation: Any) -> bool:
    return any(get_origin(kind) is Literal for kind in (annotation, *get_args(annotation)))


def as_text(spec: StrategySpec) -> str:
    """The strategy as text that :func:`from_text` reads back, equal where strategies are."""
    return json.dumps(spec.as_dict(), sort_keys=True)


@lru_cache(maxsize=1024)
def from_text(text: str) -> StrategySpec:
    """The strategy that :func:`as_text` wrote."""
    return strategy_from(json.loads(text))


def field_of(modality: str) -> str:
    """Name of vLLM's field that carries the strategies of pictures to the model."""
    return f"{KEY}_{modality}"


def sent(text: str) -> Tensor:
    """uint8 [bytes]: text as such a field can hold it."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def received(given: Iterable[Tensor]) -> list[str]:
    """The texts of a batch, each as :func:`sent` made it."""
    return [bytes(row.tolist()).decode() for row in given]


@lru_cache(maxsize=4096)
def _decisions(text: str, shape: ModelShape, n_visual: int) -> tuple[Decision, ...]:
    found = resolve(from_text(text), shape, n_visual)
    return tuple(fits.decisions(found.spatial_parts, shape, (n_visual,)))


def decisions(text: str, shape: ModelShape, n_visual: int) -> tuple[Decision, ...]:
    """What is decided of a picture with ``n_visual`` visual tokens, in order; nothing where ``text`` is empty."""
    return _decisions(text, shape, n_visual) if text and n_visual else ()


def kept(text: str, shape: ModelShape, n_visual: int) -> int:
    """Visual tokens that stay of a picture with ``n_visual``: each picture is decided on by itself.

    Raises:
        ConfigError: when none would: in vLLM a picture without a token is none.
    """
    left = min([n_visual, *(decision.counts[0] for decision in decisions(text, shape, n_visual))])
    if left < 1:
        label = from_text(text).strategy.label()
        raise ConfigError(
            complaint(f"strategy {label!r} in vLLM", "keep a token of every picture at least",
                      f"{left} of {n_visual}", "raise its budget, or send no picture")
        )  # fmt: skip
    return left


def require_servable(spec: StrategySpec, family: PrunedFamily) -> str:
    """The strategy as text, if vLLM can serve it on this model.

    Raises:
        UnsupportedError: names the strategy, and the reason.
        StrategyError: for parts that contradict each other or lie outside the model.
    """
    strategy, shape = spec.strategy, family.shape
    _require_at_input(strategy, shape)
    for part in strategy.spatial_parts:
        _require_positions(part, mrope=family.layout.mrope)
        if part.trainable:
            raise _refused(part, "carry no trained weights, which are made for the model in transformers", "trainable")
    unserved = sorted(strategy.needed() & _UNSERVED.keys(), key=lambda need: need.value)
    if unserved:
        reason = "; ".join(dict.fromkeys(_UNSERVED[need] for need in unserved))
        raise _refused(strategy, "read nothing that vLLM has not", [need.value for need in unserved], reason)
    fits.check(strategy, family.layout)
    _require_loaded(strategy, family.layout)
    text = as_text(spec)
    kept(text, shape, shape.usual_visual)
    return text


def _require_at_input(strategy: Strategy, shape: ModelShape) -> None:
    """Refuse what acts anywhere but at the language model's input, or keeps nobody knows how many."""
    must = "act before the language model alone"
    if strategy.temporal_part is not None:
        raise _refused(strategy, must, "a part that acts at decode steps", "vLLM's paged cache lets no entry go early")
    if strategy.attention_part is not None:
        raise _refused(strategy, must, "a part that edits attention", "vLLM's kernels attend to all that is there")
    found = fits.decisions(strategy.spatial_parts, shape, (shape.usual_visual,))
    inside = sorted({decision.boundary for decision in found if decision.boundary})
    if inside:
        reason = "in vLLM every layer holds every token"
        raise _refused(strategy, must, f"boundaries {inside}, inside it", reason)
    for part in strategy.spatial_parts:
        if not part.count_is_static:
            reason = "vLLM makes room for a picture's tokens before it is encoded"
            raise _refused(part, "keep a number of tokens that the picture's size tells", "it depends on what is seen",
                           reason)  # fmt: skip


def _require_loaded(strategy: Strategy, layout: Layout) -> None:
    """Refuse what reads blocks behind the one whose output becomes the features: vLLM does not load them."""
    depth = len(layout.vision_attentions)
    for part in strategy.spatial_parts:
        blocks = part.vision_blocks_of(layout.features_block, depth) if part.needed() & FROM_TOWER else ()
        beyond = [block for block in blocks if block % depth > layout.features_block % depth]
        if beyond:
            raise _refused(part, "read blocks of the vision tower up to the one that makes the features", beyond,
                           "vLLM loads no others: leave block out")  # fmt: skip


def _require_positions(part: Spatial, *, mrope: bool) -> None:
    """Refuse the position policy that vLLM does not have; the default is taken for the one that it has."""
    has = "keep" if mrope else "renumber"
    if "positions" in part.model_fields_set and part.positions != has:
        raise UnsupportedError(
            complaint(f"positions of strategy {part.name!r} on this model in vLLM", f"be {has}", part.positions,
                      "leave it out: " + ("tokens keep the places that they have in the picture" if mrope else
                                          "vLLM counts the positions of a prompt without gaps"))
        )  # fmt: skip


def _refused(strategy: Strategy, must: str, got: object, hint: str = "") -> UnsupportedError:
    label = strategy.label()
    return UnsupportedError(complaint(f"strategy {label!r} in vLLM", must, got, hint or "use tokentrim.trim for it"))
