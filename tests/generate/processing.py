"""A processor for the tiny LLaVA: words w0 to w99, whose ids are their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from tests.models import IMAGE, PAD, VOCAB


def processor_for(model: Any) -> Any:
    """What the image-text-to-text pipeline asks for, made for one model."""
    words = {f"w{number}": number for number in range(VOCAB) if number != IMAGE}
    tokenizer = Tokenizer(models.WordLevel({**words, "<image>": IMAGE}, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=f"w{PAD}", extra_special_tokens={"image_token": "<image>"}
    )
    vision = model.config.vision_config
    size = {"height": vision.image_size, "width": vision.image_size}
    pictures = CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=fast,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def picture() -> Image.Image:
    """Coloured noise."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
