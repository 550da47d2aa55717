"""Write a trained checkpoint as a model folder that plain transformers loads.

`python -m tokentrim.testbed.export CHECKPOINT --out FOLDER`
"""

import argparse
from pathlib import Path
from typing import Any, Final

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from tokentrim.testbed.checkpoint import Checkpoint
from tokentrim.testbed.model import PIXEL_MEAN, PIXEL_STD, build_model
from tokentrim.testbed.scenes import IMAGE_SIZE, PATCH
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


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; `?` and `,` may touch a word; the tokenizer writes the begin token itself."""
    tokenizer: Any = Tokenizer(models.WordLevel(dict(IDS), unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[?,]"), "isolated"), pre_tokenizers.WhitespaceSplit()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, IDS[BEGIN])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNKNOWN,
        pad_token=PAD,
        padding_side="left",
        additional_special_tokens=[IMAGE],
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaProcessor:
    """Processor of the testbed's models; pictures of another size are resized to 80 x 80."""
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessor(
        size=side,
        do_resize=True,
        do_center_crop=False,
        crop_size=side,
        do_rescale=True,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def load_checkpoint(path: Path) -> LlavaForConditionalGeneration:
    """The model of a training checkpoint, in evaluation mode."""
    state = Checkpoint.load(path).model
    prefix = "model.language_model.layers."
    layers = 1 + max(int(name[len(prefix) :].split(".")[0]) for name in state if name.startswith(prefix))
    model = build_model(layers)
    model.load_state_dict(state)
    return model.eval()


def export(checkpoint: Path, folder: Path) -> None:
    """Write weights, configuration, tokenizer and processor; other files of the folder are left alone."""
    model: Any = load_checkpoint(checkpoint)
    model.generation_config.bos_token_id = IDS[BEGIN]
    model.generation_config.eos_token_id = IDS[END]
    model.generation_config.pad_token_id = IDS[PAD]
    model.generation_config.do_sample = False
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="STAGE.pt of a training run")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    arguments = parser.parse_args()
    export(arguments.checkpoint, arguments.out)


if __name__ == "__main__":
    main()
