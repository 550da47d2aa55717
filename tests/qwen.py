"""Tiny Qwen-VL models with random weights, built in memory, and prompts of images and videos of any size for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import transformers
from torch import Tensor

from tests import models
from tests.families import Encoded, Family, Layout, Picture, noise

IMAGE, VIDEO, PAD = models.IMAGE, models.VIDEO, models.PAD
START, END = models.VOCAB, models.VOCAB + 1
VOCAB = models.VOCAB + 4
PATCH, MERGE, TEMPORAL = 4, 2, 2

Kind = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"]
KINDS: tuple[Kind, ...] = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
Part = int | tuple[Any, ...]
"""A number of text tokens, ("image", rows, cols) or ("video", frames, rows, cols), in merged tokens."""

_CLASSES = {
    "qwen2_vl": ("Qwen2VLConfig", "Qwen2VLForConditionalGeneration"),
    "qwen2_5_vl": ("Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": ("Qwen3VLConfig", "Qwen3VLForConditionalGeneration"),
    "qwen3_vl_moe": ("Qwen3VLMoeConfig", "Qwen3VLMoeForConditionalGeneration"),
}
_TOWER = {"num_heads": 2, "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": TEMPORAL}
_TOWERS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {**_TOWER, "depth": 3, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
    # Windows of 2 x 2 merged tokens; only blocks 1 and 3 see the whole picture.
    "qwen2_5_vl": {
        **_TOWER, "depth": 4, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "window_size": 16,
        "fullatt_block_indexes": [1, 3],
    },
    "qwen3_vl": {
        **_TOWER, "depth": 3, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
    },
}  # fmt: skip


def tiny_qwen(
    kind: Kind = "qwen2_5_vl", *, layers: int = 6, attention: str = "sdpa", seed: int = 0, **more: Any
) -> Any:
    """A model with ``layers`` decoder layers of width 64, 4 query and 2 key/value heads."""
    torch.manual_seed(seed)
    third = kind.startswith("qwen3")
    text: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": None,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3],
            **({"mrope_interleaved": True} if third else {}),
        },
    }  # fmt: skip
    if third:
        text["head_dim"] = 16
    if kind == "qwen3_vl_moe":
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    text |= more
    config_class, model_class = (getattr(transformers, name) for name in _CLASSES[kind])
    config = config_class(
        text_config=text,
        vision_config=_TOWERS["qwen3_vl" if third else kind],
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    config._attn_implementation = attention
    model = model_class(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            language = "language_model" in name or "lm_head" in name
            std = 1.0 if "embed_tokens" in name else 0.2 if language else 1.5 * parameter[0].numel() ** -0.5
            torch.nn.init.normal_(parameter, std=std)
    model.lm_head.weight.data[VIDEO:] = 0.0  # an answer holds no placeholder
    model = model.eval().requires_grad_(False)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def prompt(
    model: Any, *layouts: Sequence[Part], seed: int = 0, padding: Literal["left", "right"] = "left"
) -> dict[str, Tensor]:
    """A batch: one row per layout, padded; no attention mask where nothing is padded."""
    stamps = model.config.model_type.startswith("qwen3")
    pixels: dict[str, list[Tensor]] = {"image": [], "video": []}
    grids: dict[str, list[list[int]]] = {"image": [], "video": []}
    rows: list[tuple[list[int], list[int]]] = []
    for number, layout in enumerate(layouts):
        generator = torch.Generator().manual_seed(100 * seed + number)
        ids: list[int] = []
        kinds: list[int] = []
        for part in layout:
            if isinstance(part, int):
                ids += torch.randint(2, VIDEO, (part,), generator=generator).tolist()
                kinds += [0] * part
                continue
            modality, *size = part
            frames, high, wide = (1, *size) if modality == "image" else size
            patches = frames * high * wide * MERGE**2
            pixels[modality].append(torch.randn(patches, 3 * TEMPORAL * PATCH**2, generator=generator))
            grids[modality].append([frames, high * MERGE, wide * MERGE])
            mark, code = (IMAGE, 1) if modality == "image" else (VIDEO, 2)
            split = frames if stamps and modality == "video" else 1  # Qwen3-VL stamps every frame of a video
            for piece in range(split):
                n = frames * high * wide // split
                stamp = [10 + piece] if split > 1 else []
                ids += [*stamp, START, *[mark] * n, END]
                kinds += [0] * len(stamp) + [0, *[code] * n, 0]
        rows.append((ids, kinds))
    length = max(len(ids) for ids, _ in rows)
    found = {name: torch.zeros(len(rows), length, dtype=torch.long) for name in ("input_ids", "mm_token_type_ids")}
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for index, (ids, kinds) in enumerate(rows):
        where = slice(length - len(ids), length) if padding == "left" else slice(0, len(ids))
        found["input_ids"][index, where] = torch.tensor(ids)
        found["mm_token_type_ids"][index, where] = torch.tensor(kinds)
        mask[index, where] = 1
    if not bool(mask.all()):
        found["attention_mask"] = mask
    for modality, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if pixels[modality]:
            found[name] = torch.cat(pixels[modality])
            found[f"{modality}_grid_thw"] = torch.tensor(grids[modality])
    return found


def visual_of(inputs: dict[str, Tensor]) -> Tensor:
    """bool [B, T]: the visual tokens."""
    return (inputs["input_ids"] == IMAGE) | (inputs["input_ids"] == VIDEO)


def alone(inputs: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """Row ``index`` of a batch as a prompt of its own, without padding."""
    keep = inputs["attention_mask"][index].bool() if "attention_mask" in inputs else slice(None)
    found = {name: inputs[name][index][keep].unsqueeze(0) for name in ("input_ids", "mm_token_type_ids")}
    for token, name, grid in (
        (IMAGE, "pixel_values", "image_grid_thw"), (VIDEO, "pixel_values_videos", "video_grid_thw"),
    ):  # fmt: skip
        if name not in inputs:
            continue
        patches: list[int] = inputs[grid].prod(-1).tolist()
        counts = [int((line == token).sum()) * MERGE**2 for line in inputs["input_ids"]]
        first = _items(patches, sum(counts[:index]))
        last = first + _items(patches[first:], counts[index])
        if last > first:
            found[name] = torch.cat(inputs[name].split(patches)[first:last])
            found[grid] = inputs[grid][first:last]
    return found


def _items(patches: Sequence[int], total: int) -> int:
    """How many pictures, from the first, hold ``total`` patches."""
    taken = 0
    while total > 0:
        total -= patches[taken]
        taken += 1
    return taken


class QwenVL(Family):
    """Pictures at their own resolution, 8 x 8 pixels per token, behind a start and before an end token."""

    row = (3, "image:32x48", 5)
    ragged = ((3, "image:32x48", 5), (9,), (2, "image:24x24", 4, "video:2:16x24", 7))
    video_id = VIDEO
    kind: ClassVar[Kind]

    def build(self, **options: Any) -> Any:
        return tiny_qwen(self.kind, **options)

    def encode(self, model: Any, pictures: Sequence[Picture], seeds: Sequence[int], together: Sequence[int]) -> Encoded:
        grids = [(picture.frames, *(n // PATCH for n in picture.size or (16, 16))) for picture in pictures]
        width = 3 * TEMPORAL * PATCH**2
        pixels = torch.cat([noise(seed, t * h * w, width) for seed, (t, h, w) in zip(seeds, grids, strict=True)])
        modality = pictures[0].modality
        name = "pixel_values" if modality == "image" else "pixel_values_videos"
        lengths = tuple(t * h * w // MERGE**2 for t, h, w in grids)
        inputs = {name: pixels.to(model.dtype), f"{modality}_grid_thw": torch.tensor(grids)}
        return Encoded(inputs, lengths)

    def wrap(self, placeholders: Tensor, picture: Picture) -> Tensor:
        return torch.cat([torch.tensor([START]), placeholders, torch.tensor([END])])

    def finish(self, inputs: dict[str, Any]) -> dict[str, Any]:
        ids = inputs["input_ids"]
        return {**inputs, "mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}

    def positions(self, model: Any, inputs: dict[str, Any], extra: int) -> Tensor:
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
        found, _ = model.model.get_rope_index(**{name: inputs[name] for name in names if name in inputs})
        behind = found[:, 0].max() + 1 + torch.arange(extra)
        return torch.cat([found[:, 0], behind.expand(3, -1)], dim=1)


class Qwen2VL(QwenVL):
    """All blocks of the tower see the whole picture."""

    name = "qwen2-vl"
    kind = "qwen2_vl"


class Qwen25VL(QwenVL):
    """Most blocks of the tower see windows."""

    name = "qwen2.5-vl"
    kind = "qwen2_5_vl"


class Qwen3VL(QwenVL):
    """Every frame of a video has a stamp of its own, and the first decoder layers get features of their own."""

    name = "qwen3-vl"
    kind = "qwen3_vl"

    def _row(self, layout: Layout, seed: int, lengths: dict[str, list[int]]) -> Tensor:
        frames = [Picture.parse(part).frames for part in layout if str(part).startswith("video")]
        spread = {
            "image": lengths["image"],
            "video": [n // f for n, f in zip(lengths["video"], frames, strict=False) for _ in range(f)],
        }
        parts: list[int | str] = []
        for part in layout:
            stamped = str(part).startswith("video")
            parts += [1, "video:1"] * Picture.parse(str(part)).frames if stamped else [part]
        row = super()._row(parts, seed, spread)
        del lengths["video"][: len(frames)]
        return row

    def deepstack(self, model: Any, inputs: dict[str, Any]) -> list[Tensor]:
        seen: list[Any] = []
        handle = model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
        )
        try:
            with torch.no_grad():
                model(**inputs)
        finally:
            handle.remove()
        where, features = seen[0]["visual_pos_masks"], seen[0]["deepstack_visual_embeds"]
        if where is None:
            return []
        return [torch.zeros(where.shape[1], flat.shape[-1]).index_put((where[0],), flat) for flat in features]


class Qwen3VLMoe(Qwen3VL):
    """Qwen3-VL with a mixture of experts."""

    name = "qwen3-vl-moe"
    kind = "qwen3_vl_moe"
