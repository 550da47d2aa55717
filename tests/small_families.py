"""Folders of small copies of families that transformers ships, each with a stand-in for its processor.

Many processors need torchvision, which tests do without. The stand-in makes noise of every picture, in the form that
the self-test found the tower to take, and writes as many placeholders as it becomes.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BatchFeature, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tokentrim.contracts.adapter import Adapter
from tokentrim.counting.shape import VisionShape
from tokentrim.counting.tilings import NativeResolution
from tokentrim.loading import known_model_types
from tokentrim.plugins.loader import registry
from tokentrim.selftest import model_class_of
from tokentrim.selftest.pictures import Form, Maker, noise
from tokentrim.selftest.running import Result, subject_of
from tokentrim.selftest.shrink import Size
from tokentrim.selftest.subject import Made, Subject

SIZE = Size(layers=3, patches=12, blocks=2)
_LETTERS = [chr(code) for code in range(32, 127)]
# Where a configuration class's defaults do not make a model that runs: what the published checkpoints have.
_GLM_ROPE = {
    "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12]
}  # fmt: skip
_PUBLISHED: dict[str, dict[str, Any]] = {
    name: {"text_config": {"rope_parameters": _GLM_ROPE, "head_dim": 128}}
    for name in ("glm4v", "glm46v", "glm4v_moe", "glmga")
}
_TILES = 2  # along the long side of a picture, where it is cut
_AREA = 4 * 56 * 56  # pixels of a picture, at most, where it keeps its size
_EDGE, _LINE, _GLOBAL, _TAG = range(200, 204)  # ids behind the letters


def config_of(model_type: str) -> Any:
    """A family's default configuration, or that of its published checkpoints where the defaults make no model."""
    return CONFIG_MAPPING[model_type](**_PUBLISHED.get(model_type, {}))


def adapter_of(model_type: str) -> Adapter:
    """The adapter that serves a family."""
    return registry("adapter").get(known_model_types().get(model_type, "generic"))()


@lru_cache(maxsize=1)
def small_copy(model_type: str) -> Subject:
    """The small copy of a family's configuration."""
    config = config_of(model_type)
    results: list[Result] = []
    subject = subject_of(model_class_of(config), config, adapter_of(model_type), None, results, SIZE)
    assert subject is not None, results
    return subject


def settings(model_type: str) -> dict[str, Any]:
    """Of the image processor: few tiles and small areas, so that pictures become few tokens."""
    subject = small_copy(model_type)
    tiling = None if subject.layout.shape.vision is None else subject.layout.shape.vision.tiling
    longest = _TILES * getattr(tiling, "pixels", 0)
    edges = {"shortest_edge": _AREA // 4, "longest_edge": _AREA} if isinstance(tiling, NativeResolution) else {}
    return {"size": edges or ({"longest_edge": longest} if longest else {}), "max_patches": _TILES}


def save(model_type: str, folder: Path) -> None:
    """Write a small copy, with the settings of an image processor that is not there: :class:`StandIn` reads nothing."""
    subject = small_copy(model_type)
    subject.model.generation_config.suppress_tokens = None
    subject.model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings(model_type)), "utf-8")


def stand_in(model_type: str) -> StandIn:
    """What stands in for a family's processor."""
    subject = small_copy(model_type)
    made = subject.prompts
    assert isinstance(made, Made)
    shape = subject.adapter.preprocessed(subject.layout.shape, settings(model_type))
    return StandIn(made.maker, shape.vision)


class StandIn:
    """A processor: texts with ``<image>`` in them and pictures become inputs of a small copy."""

    image_token = "<image>"
    chat_template = None

    def __init__(self, maker: Maker, vision: VisionShape | None) -> None:
        """``vision`` where an adapter says what pictures of each size become."""
        self.maker, self.vision = maker, vision
        names = {"<pad>": 0, "<end>": 1, "<unk>": 2, **{letter: 3 + n for n, letter in enumerate(_LETTERS)}}
        known = Tokenizer(models.WordLevel({**names, self.image_token: maker.token}, unk_token="<unk>"))
        known.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        known.decoder = decoders.Fuse()
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=known, pad_token="<pad>", eos_token="<end>", unk_token="<unk>",
            additional_special_tokens=[self.image_token], padding_side="left",
        )  # fmt: skip

    def form(self, height: int, width: int, images: int) -> tuple[Form, list[int]]:
        """The form of a picture of a size, one of ``images`` in its prompt, and the ids that are written for it."""
        tiling, form = None if self.vision is None else self.vision.tiling, self.maker.form
        sizes = [n for n in form["pixel_values"] if isinstance(n, int)]
        if self.vision is None or tiling is None or not tiling.varies:
            return form, self.placeholders(self.maker.length)
        cut = self.vision.for_image(height, width, images)
        ids = self.placeholders(cut.n_visual + cut.n_structure)
        if isinstance(tiling, NativeResolution):
            high, wide = (side // tiling.patch for side in tiling.resized(height, width))
            patches = (high * wide, *sizes[1:])
            return {"pixel_values": patches, "image_grid_thw": [[1, high, wide]]}, ids
        if len(sizes) == 5 and "image_sizes" in form:
            return {"pixel_values": (1, cut.pieces, *sizes[2:]), "image_sizes": [[height, width]]}, ids
        if len(sizes) == 5:
            return {"pixel_values": (1, cut.pieces, *sizes[2:])}, self.tagged(cut)
        if "image_sizes" in form:
            high, wide = cut.rows * sizes[2] // 2, cut.cols * sizes[3] // 3  # the self-test's picture is 2 x 3 tokens
            return {"pixel_values": (1, sizes[1], high, wide), "image_sizes": [[high, wide]]}, ids
        return {"pixel_values": (cut.pieces, *sizes[1:])}, ids

    def placeholders(self, n: int) -> list[int]:
        """``n`` of them, with what stands around a picture."""
        left, right = self.maker.around
        return [*left, *[self.maker.token] * n, *right]

    def tagged(self, cut: VisionShape) -> list[int]:
        """Pieces as SmolVLM's processor writes them: an edge and a tag before each, and a line's end behind a row."""
        piece = [self.maker.token] * (cut.n_visual // cut.pieces)
        side = math.isqrt(len(piece))
        rows, cols = (cut.rows // side, cut.cols // side) if cut.pieces > 1 else (0, 0)
        ids: list[int] = []
        for row in range(rows):
            for col in range(cols):
                ids += [_EDGE, _TAG + row * cols + col, *piece]
            ids.append(_LINE)
        return [*ids, _EDGE, _GLOBAL, *piece, _EDGE]

    def __call__(self, text: Sequence[str], images: Sequence[Sequence[Any]] | None, **asked: Any) -> BatchFeature:
        shown = [list(row) for row in images or [[] for _ in text]]
        forms = [[self.form(image.height, image.width, len(row)) for image in row] for row in shown]
        rows: list[list[int]] = []
        for line, own in zip(text, forms, strict=True):
            written = iter([ids for _, ids in own])
            rows.append([])
            for one in self.tokenizer(line)["input_ids"]:
                rows[-1] += next(written) if one == self.maker.token else [one]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        found: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        made = [
            noise(form, zlib.crc32(image.tobytes()))
            for row, own in zip(shown, forms, strict=True)
            for image, (form, _) in zip(row, own, strict=True)
        ]
        found |= {name: torch.cat([one[name] for one in made]) for name in self.maker.form if made}
        if self.maker.kinds is not None:
            found[self.maker.kinds] = (ids == self.maker.token).long()
        return BatchFeature(found)
