"""A folder with a small Qwen-VL of random weights, its words, and processors of pictures and videos."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests.qwen import END, IMAGE, MERGE, PAD, PATCH, START, TEMPORAL, VIDEO, tiny_qwen

SIZE = {"shortest_edge": 64, "longest_edge": 12544}
TEMPLATE = (
    "{%- for message in messages -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{- ' ' + part['text'] + ' ' -}}"
    "{%- else -%}{{- '<|vision_start|><|' + part['type'] + '_pad|><|vision_end|>' -}}{%- endif -%}"
    "{%- endfor -%}{%- endfor -%}"
)
_STAMPS = [*"0123456789", "<", ">", ".", "seconds"]


def words():
    """What each id is called: stamps of time, words of two letters, and the marks of pictures."""
    named = {PAD: "<pad>", VIDEO: "<|video_pad|>", IMAGE: "<|image_pad|>", START: "<|vision_start|>"}
    named |= {END: "<|vision_end|>", END + 1: "<unk>"}
    named |= {2 + number: word for number, word in enumerate(_STAMPS)}
    letters = "abcdefghijklmnopqrstuvwxyz"
    return {named.get(number, letters[number // 26] + letters[number % 26]): number for number in range(END + 2)}


def tokenizer():
    made = Tokenizer(models.WordLevel(words(), unk_token="<unk>"))
    stamps = pre_tokenizers.Split(Regex("[0-9<>.]"), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), stamps])
    marks = ["<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", padding_side="left",
        additional_special_tokens=marks,
    )  # fmt: skip


def small_qwen(kind, folder):
    """The model, in whose heads vLLM's kernels have room, and its processor; both lie in ``folder``, too."""
    third = kind.startswith("qwen3")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, **({"head_dim": 32} if third else {})}
    experts = {"norm_topk_prob": True} if kind == "qwen3_vl_moe" else {}  # as published folders say, and vLLM asks
    model = tiny_qwen(
        kind, layers=4, **heads, **experts, rope_parameters={**rope, **({"mrope_interleaved": True} if third else {})}
    )
    patches = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": TEMPORAL}
    films = Qwen3VLVideoProcessor if third else Qwen2VLVideoProcessor
    second = Qwen2VLProcessor if kind == "qwen2_vl" else Qwen2_5_VLProcessor
    processor = (Qwen3VLProcessor if third else second)(
        image_processor=Qwen2VLImageProcessor(**patches, size=SIZE),
        tokenizer=tokenizer(),
        video_processor=films(**patches, size={**SIZE, "longest_edge": 8 * SIZE["longest_edge"]}),
        chat_template=TEMPLATE,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    weights = load_file(Path(folder) / "model.safetensors")
    turned = {name: value.mT.contiguous() for name, value in weights.items() if "experts." in name}  # as published
    save_file(weights | turned, Path(folder) / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((Path(folder) / "config.json").read_text())
    (Path(folder) / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    return model, processor
