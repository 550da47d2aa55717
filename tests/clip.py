"""A tiny CLIP checkpoint, and a tiny LLaVA whose tower could be its own, both with tokenizers of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

LENGTH = 7  # tokens that the text tower takes
_BEGIN, _END, _WORDS = 96, 97, 96


def clip_folder(folder: Path, width: int, seed: int = 0) -> Path:
    """Random weights, towers of ``width``, words w0 to w95 between a beginning and an end."""
    one = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**one, "vocab_size": 98, "max_position_embeddings": LENGTH, "bos_token_id": _BEGIN, "eos_token_id": _END}
    config = CLIPConfig(
        text_config=text, vision_config={**one, "image_size": 8, "patch_size": 4}, projection_dim=6
    )  # fmt: skip
    torch.manual_seed(seed)
    model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # as initialised, all texts are nearly the same vector
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    words = {**{f"w{number}": number for number in range(_WORDS)}, "<begin>": _BEGIN, "<end>": _END}
    made = Tokenizer(models.WordLevel(words, unk_token="w1"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends: list[tuple[str, int]] = [("<begin>", _BEGIN), ("<end>", _END)]
    made.post_processor = processors.TemplateProcessing(single="<begin> $A <end>", special_tokens=ends)
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<begin>", eos_token="<end>").save_pretrained(folder)
    return folder


def in_folder(model: Any, processor: Any, folder: Path) -> Any:
    """``model``, as if it had been loaded from ``folder``, which holds its tokenizer."""
    processor.tokenizer.save_pretrained(folder)
    model.config.name_or_path = str(folder)
    return model
