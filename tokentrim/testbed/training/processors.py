"""Tokenizer, chat template and image processor of the testbed's models: transformers' own classes, set up."""

from functools import partial
from typing import Any, Final

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PaddleOCRVLProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
)

from tokentrim.testbed.busy.scenes import SIZE
from tokentrim.testbed.scenes import IMAGE_SIZE, PATCH
from tokentrim.testbed.training.family import TestbedFamily
from tokentrim.testbed.training.llava_next import PINPOINTS, TILE
from tokentrim.testbed.training.model import PIXEL_MEAN, PIXEL_STD
from tokentrim.testbed.training.qwen import FRAMES, IMAGE_PAD, MERGE, QWEN_IDS, QWEN_PATCH, VISION_END, VISION_START
from tokentrim.testbed.vocabulary import BEGIN, END, IDS, IMAGE, PAD, UNKNOWN

# The picture comes first, as in training, wherever a message puts it. The begin token is the tokenizer's
# business.
CHAT_TEMPLATE: Final = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- 'user: ' -}}
{%- if message['content'] is string -%}
{{- message['content'] + ' ' -}}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image> ' -}}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] + ' ' -}}{%- endfor -%}
{%- endif -%}
{%- elif message['role'] == 'assistant' -%}
{{- 'assistant: ' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
{%- endif -%}
{{- ' </s> ' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt or messages[-1]['role'] == 'user' -%}{{- 'assistant:' -}}{%- endif -%}
"""
_PIXELS: Final[dict[str, Any]] = {"image_mean": [PIXEL_MEAN] * 3, "image_std": [PIXEL_STD] * 3, "do_rescale": True}
_CLIP: Final[dict[str, Any]] = {
    "patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
    "chat_template": CHAT_TEMPLATE,
}  # fmt: skip
# Pictures from 40 x 40 to 112 x 112 pixels keep their size, rounded to whole tokens; others are scaled.
_QWEN_SIZE: Final = {"shortest_edge": 40 * 40, "longest_edge": 112 * 112}


def words_of(family: TestbedFamily) -> dict[str, int]:
    """Token ids of a family's vocabulary."""
    if family.name != "qwen2.5-vl":
        return dict(family.words)
    return {**{word: i for word, i in IDS.items() if word != IMAGE}, **QWEN_IDS}


def build_tokenizer(family: TestbedFamily) -> PreTrainedTokenizerFast:
    """One token per word; `?` and `,` may touch a word; the tokenizer writes the begin token itself."""
    tokenizer: Any = Tokenizer(models.WordLevel(words_of(family), unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[?,]"), "isolated"), pre_tokenizers.WhitespaceSplit()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, IDS[BEGIN])]
    )
    qwen = family.name == "qwen2.5-vl"
    named: dict[str, Any] = (
        {"extra_special_tokens": {"image_token": IMAGE_PAD}, "additional_special_tokens": [*QWEN_IDS]}
        if qwen
        else {"additional_special_tokens": [IMAGE]}
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNKNOWN,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **named,
    )


def build_processor(family: TestbedFamily) -> Any:
    """The processor of a family's models."""
    make = {"llava": _llava, "busy": partial(_llava, size=SIZE), "llava-next": _next, "qwen2.5-vl": _qwen}[family.name]
    return make(build_tokenizer(family))


def _llava(tokenizer: PreTrainedTokenizerFast, size: int = IMAGE_SIZE) -> LlavaProcessor:
    side = {"height": size, "width": size}  # pictures of another size are resized
    images = CLIPImageProcessor(size=side, do_resize=True, do_center_crop=False, crop_size=side, **_PIXELS)
    return LlavaProcessor(image_processor=images, tokenizer=tokenizer, **_CLIP)


def _next(tokenizer: PreTrainedTokenizerFast) -> LlavaNextProcessor:
    side = {"height": TILE, "width": TILE}
    images = LlavaNextImageProcessor(
        size=side, crop_size=side, do_center_crop=False, image_grid_pinpoints=[list(p) for p in PINPOINTS], **_PIXELS
    )
    return LlavaNextProcessor(image_processor=images, tokenizer=tokenizer, **_CLIP)


def _qwen(tokenizer: PreTrainedTokenizerFast) -> PaddleOCRVLProcessor:
    """Qwen2.5-VL's own processor cannot be built without its video processor, and that one not without torchvision.

    This class does the same for pictures: placeholders by `image_grid_thw`, and the token types from which the model
    derives its positions.
    """
    images = Qwen2VLImageProcessor(
        patch_size=QWEN_PATCH, merge_size=MERGE, temporal_patch_size=FRAMES, size=dict(_QWEN_SIZE), **_PIXELS
    )
    template = CHAT_TEMPLATE.replace("<image>", f"{VISION_START} {IMAGE_PAD} {VISION_END}")
    return PaddleOCRVLProcessor(image_processor=images, tokenizer=tokenizer, chat_template=template)
