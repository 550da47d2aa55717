"""Write a trained checkpoint as a model folder that plain transformers loads.

`python -m tokentrim.testbed.training.export CHECKPOINT --out FOLDER`
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tokentrim.errors import DataError, complaint, reason_of
from tokentrim.testbed.training.checkpoint import Checkpoint, make_folder, told
from tokentrim.testbed.training.families import FAMILIES
from tokentrim.testbed.training.family import LLAVA, TestbedFamily
from tokentrim.testbed.training.processors import build_processor
from tokentrim.testbed.vocabulary import BEGIN, END, IDS, PAD


def load_checkpoint(path: Path, family: TestbedFamily = LLAVA) -> Any:
    """The model of a training checkpoint, in evaluation mode.

    Raises:
        DataError: when it is none, or of another family.
    """
    state = Checkpoint.load(path).model
    prefix = "model.language_model.layers."
    try:
        layers = 1 + max(int(name[len(prefix) :].split(".")[0]) for name in state if name.startswith(prefix))
        model = family.build(layers)
        model.load_state_dict(state)
    except (ValueError, RuntimeError) as cause:  # no layers at all, or those of another model
        must = f"be of a model of the family {family.name}"
        raise DataError(complaint(f"the checkpoint {path}", must, hint=reason_of(cause))) from cause
    return model.eval()


def export(checkpoint: Path, folder: Path, family: TestbedFamily = LLAVA, half: bool = False) -> None:
    """Write weights, configuration, tokenizer and processor; other files of the folder are left alone.

    half: store the weights in float16. The configuration says float32 all the same, in which they are loaded.
    """
    model = load_checkpoint(checkpoint, family)
    model.generation_config.bos_token_id = IDS[BEGIN]
    model.generation_config.eos_token_id = IDS[END]
    model.generation_config.pad_token_id = IDS[PAD]
    model.generation_config.do_sample = False
    make_folder(folder)
    model.save_pretrained(folder)
    if half:
        weights = load_file(folder / "model.safetensors")
        halved = {name: value.half() for name, value in weights.items()}
        save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    build_processor(family).save_pretrained(folder)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="STAGE.pt of a training run")
    parser.add_argument("--model", choices=tuple(FAMILIES), default="llava", help="architecture of the checkpoint")
    parser.add_argument("--half", action="store_true", help="store the weights in float16; they are loaded in float32")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    arguments = parser.parse_args(argv)
    return told(lambda: export(arguments.checkpoint, arguments.out, FAMILIES[arguments.model], arguments.half))


if __name__ == "__main__":
    sys.exit(main())
