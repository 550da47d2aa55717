"""Where vLLM runs models: what a class of vLLM calls around its own encoding of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from tokentrim.contracts.adapter import Encoding, Modality
from tokentrim.serve.vllm.asked import PrunedFamily, field_of, received
from tokentrim.serve.vllm.bridge import PictureKept, Reading, ServedPictures, readings
from tokentrim.serve.vllm.tower import Tower

Arrange = Callable[[ServedPictures, list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Trimmer:
    """Prunes the pictures of one served model.

    Attributes:
        family: of the model; its layout's projector is the served one.
        tower: what is read of it.
    """

    family: PrunedFamily
    tower: Tower

    @classmethod
    def of(cls, config: Any, cores: Iterable[nn.Module], projector: nn.Module) -> Trimmer:
        """For a model of transformers' ``config``.

        Args:
            config: of the whole model.
            cores: vLLM's attention core of each vision block that is loaded.
            projector: vLLM's own; it is used where the family's works token by token.
        """
        found, loaded = PrunedFamily.of(config), tuple(cores)
        layout = found.layout if found.layout.projector is None else replace(found.layout, projector=projector)
        core: Any = loaded[0]
        tower = Tower(loaded, core.num_heads, core.scale, layout.has_cls, layout.projector)
        return cls(replace(found, layout=layout), tower)

    @classmethod
    def of_clip(cls, model: Any) -> Trimmer:
        """For one of vLLM's models with a CLIP tower and LLaVA's projector."""
        cores = [block.self_attn.attn for block in model.vision_tower.vision_model.encoder.layers]
        return cls.of(model.config, cores, model.multi_modal_projector)

    def kept(
        self,
        modality: Modality,
        given: Mapping[str, Any],
        encode: Callable[..., Any],
        *,
        packed: Sequence[int] | None = None,
        width: int | None = None,
        trimmed: Arrange | None = None,
    ) -> list[PictureKept]:
        """What stays of each picture of a batch.

        Args:
            modality: what they are.
            given: vLLM's arguments, the field of their strategies among them.
            encode: makes features [placeholders, D] of each, of the other arguments.
            packed: tokens of each piece that the tower attends to by itself, where all lie in one row.
            width: how much of each feature a strategy sees; None = all.
            trimmed: takes out of what was read what is no picture's.
        """
        arguments = dict(given)
        texts = received(arguments.pop(field_of(modality)))
        wanted = readings(texts, self.family)
        with self.tower.reading(wanted, packed) as read:
            features: list[Tensor] = list(encode(**arguments))
        encoding = Encoding(modality, arguments, tuple(len(one) for one in features))
        arranged: dict[Reading, Tensor] = {}
        pictures = ServedPictures(self.family, encoding, features, arranged, width)
        for what, pieces in read.items():
            own = pieces if trimmed is None else trimmed(pictures, pieces)
            arranged[what] = self.family.adapter.arrange(self.family.layout, encoding, own)
        return pictures.kept(texts)
