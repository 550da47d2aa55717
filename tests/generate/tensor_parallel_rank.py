"""One of two processes that share a model; run by torchrun: FOLDER OUT. Not a test itself."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from tests.engine.cases import SPECS
from tests.models import prompt
from tokentrim.session import trim

NAMES = ("none", "fastv-query=last", "pvtp-query=text", "st3", "pool")


def answers(model: LlavaForConditionalGeneration) -> dict[str, list[torch.Tensor]]:
    """Per strategy: new tokens, their logits, and what each layer kept and cached at the end."""
    model.eval()
    inputs = prompt(model, [3, "image", 5], [2, "image", 4, "image", 7])
    found: dict[str, list[torch.Tensor]] = {}
    for name in NAMES:
        with trim(model, SPECS[name]) as session:
            out = model.generate(
                **inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True
            )
            trace = session.trace
            places = [(layer, row) for layer in range(trace.n_layers) for row in (0, 1)]
            kept = [trace.kept(*place) for place in places]
            held = [trace.cached(layer, trace.steps, row) for layer, row in places]
        found[name] = [out.sequences, torch.stack(out.logits), *kept, *held]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    shared = LlavaForConditionalGeneration.from_pretrained(sys.argv[1], tp_plan="auto")
    rank = torch.distributed.get_rank()
    torch.save(answers(shared), Path(sys.argv[2]) / f"rank{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
