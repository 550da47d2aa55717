"""Where vLLM makes prompts: pictures get as many placeholders as tokens will stay, and carry their strategy along.

The strategy is part of ``mm_processor_kwargs``, and vLLM keys its caches by these: one picture at two budgets is two.
"""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import BaseMultiModalProcessor, PromptUpdateDetails

from tokentrim.contracts.adapter import MODALITIES
from tokentrim.errors import ConfigError, TokentrimError, complaint
from tokentrim.serve.vllm.asked import (
    KEY,
    PrunedFamily,
    field_of,
    kept,
    of_request,
    require_servable,
    sent,
)
from tokentrim.serve.vllm.counted import count

if TYPE_CHECKING:  # a mixin: the processor of vLLM's own family comes behind it
    _Processor = BaseMultiModalProcessor[Any]
else:
    _Processor = object


@dataclass
class Shortened(PromptUpdateDetails):
    """The placeholders of a picture, and how many visual tokens of it stay and go."""

    kept: int = 0
    dropped: int = 0


class Trimming(_Processor):
    """What a processor of vLLM does more where pictures are pruned."""

    _profiling = False

    @cached_property
    def _family(self) -> PrunedFamily:
        return PrunedFamily.of(self.info.ctx.model_config.hf_config)

    @cached_property
    def _server(self) -> str:
        config: Any = self.info.ctx.model_config.hf_config
        return json.dumps(config.tokentrim["strategy"], sort_keys=True)

    @cached_property
    def _checked(self) -> Any:
        return lru_cache(maxsize=256)(lambda given: require_servable(of_request(json.loads(given)), self._family))

    def _structure(self, mm_items: Any, modality: str, item: int) -> int:
        """Placeholders of a picture that are no visual tokens (line ends): they stay."""
        vision = self._family.shape.vision
        if not self._family.layout.structured or vision is None or vision.tiling is None:
            return 0
        size = mm_items[modality].get_image_size(item)
        return vision.tiling.cut(size.height, size.width).n_structure

    def _asked(self, given: Mapping[str, object]) -> tuple[str, dict[str, object]]:
        """The strategy of a request as text ("" while vLLM measures memory, with whole pictures), and all else."""
        rest = {name: value for name, value in given.items() if name != KEY}
        if self._profiling or KEY not in given:
            return "" if self._profiling else self._server, rest
        with as_bad_request():
            try:
                text = json.dumps(given[KEY], sort_keys=True)
            except (TypeError, ValueError) as cause:
                must = "be what JSON can say"
                raise ConfigError(complaint(f"mm_processor_kwargs.{KEY}", must, given[KEY], str(cause))) from cause
            return self._checked(text), rest

    def get_dummy_mm_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Whole pictures: a request may ask for more than the server's strategy keeps."""
        self._profiling = True
        try:
            return super().get_dummy_mm_inputs(*args, **kwargs)
        finally:
            self._profiling = False

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        text, rest = self._asked(hf_kwargs)
        data = super()._apply_hf_processor_main(mm_items, rest)
        for modality in MODALITIES:
            if modality in mm_items:
                data[field_of(modality)] = [sent(text)] * mm_items.get_count(modality)
        return data

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        _, rest = self._asked(hf_processor_mm_kwargs)
        own = {
            field_of(modality): MultiModalFieldConfig.batched(modality, keep_on_cpu=True)
            for modality in MODALITIES
            if field_of(modality) in hf_inputs
        }
        return {**super()._get_mm_fields_config(hf_inputs, rest), **own}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        text, rest = self._asked(hf_processor_mm_kwargs)
        updates: Sequence[Any] = super()._get_prompt_updates(mm_items, rest, out_mm_kwargs)
        return [
            replace(update, replacement=partial(self._shortened, text, mm_items, update.modality, update.replacement))
            for update in updates
        ]

    def _shortened(self, text: str, mm_items: Any, modality: str, whole: Any, item: int) -> Shortened:
        """As many placeholders of a picture as stay, of the tokens that vLLM would write."""
        tokens: Any = whole(item) if callable(whole) else whole
        structure = self._structure(mm_items, modality, item)
        n_visual = len(tokens) - structure
        with as_bad_request():
            stay = kept(text, self._family.shape, n_visual)
        return Shortened(tokens[: stay + structure], kept=stay, dropped=n_visual - stay)

    def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Any) -> Any:
        made = super()._maybe_apply_prompt_updates(mm_items, mm_res)
        pictures = [update[0].content for updates in mm_res.prompt_updates.values() for update in updates if update]
        if pictures and not self._profiling:
            count(sum(one.kept for one in pictures), sum(one.dropped for one in pictures))
        return made


@contextmanager
def as_bad_request() -> Generator[None, None, None]:
    """Turn our errors into what vLLM's server answers a bad request for, in the same words."""
    try:
        yield
    except TokentrimError as error:
        raise ValueError(str(error)) from error
