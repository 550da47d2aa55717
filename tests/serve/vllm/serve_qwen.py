"""A small Qwen-VL in vLLM against ``tokentrim.trim`` on the same weights: ``python serve_qwen.py KIND OUT.json``.

Pictures and videos, and both in one prompt. A process of its own, because a start of vLLM takes minutes.
"""

# vLLM is not installed where types are checked.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

import json
import os
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

os.environ |= {
    "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}  # fmt: skip

import numpy as np
import torch
from PIL import Image

import tokentrim
from tests.serve.vllm.small_qwen import small_qwen
from tokentrim import LayerSite, Schedule, SpatialScorer
from tokentrim.loading import chat_text, conversation_inputs
from tokentrim.reading import Video

NAMES = ("uniform", "random", "divprune")
RATIOS = (1.0, 0.5, 0.25)
PICTURES = {"portrait": (40, 56), "landscape": (72, 32)}  # width, height
CLIPS = {  # frames, their width and height, frames per second
    "portrait clip": (6, 24, 40, 4.0),
    "landscape clip": (8, 56, 24, 4.0),
    "a clip with a fraction of a position per frame": (6, 32, 48, 3.0),
    "a clip longer in time than in space": (16, 24, 16, 1.0),
}
NEW_TOKENS = 16
DEFAULT = {"name": "divprune", "keep_ratio": 0.25}


class Listed(SpatialScorer):
    """Keep the tokens of a list: what several pictures keep, each by itself."""

    name: ClassVar[str] = "listed"
    listed: tuple[int, ...]

    def schedule(self, shape, n_visual):
        return Schedule.of({0: len(self.listed)})

    def score(self, site: LayerSite):
        return torch.isin(site.ids, torch.tensor(self.listed)).float()


def noise(name, frames, width, height):
    """Frames of noise in large patches, other ones for each name."""
    draw = np.random.default_rng(sum(name.encode()))
    made = draw.integers(0, 256, (frames, height // 8, width // 8, 3), dtype=np.uint8)
    return [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in made]


def picture(name):
    return noise(name, 1, *PICTURES[name])[0]


def clip(name):
    *size, fps = CLIPS[name]
    return Video(tuple(noise(name, *size)), fps)


def turns(names):
    """One turn that shows everything, with a word before, between and behind."""
    content: list[dict[str, str]] = [{"type": "text", "text": "ba"}]
    for number, name in enumerate(names):
        content += [
            {"type": "video" if name in CLIPS else "image"},
            {"type": "text", "text": "bc bd be"[: 2 + 3 * number]},
        ]
    return ({"role": "user", "content": content},)


def inputs_of(processor, names):
    images = [picture(name) for name in names if name in PICTURES]
    return conversation_inputs(processor, [turns(names)], [images], [clip(name) for name in names if name in CLIPS])


def behind_time(model):
    """Let text go on behind the last position of a video in time, too, as vLLM has it and transformers 5 has not."""
    before = model.model.get_rope_index

    def counted(input_ids, mm_token_type_ids, **more):
        found, _ = before(input_ids, mm_token_type_ids, **more)
        reach = 0
        for _, run in groupby(range(input_ids.shape[1]), key=lambda column: int(mm_token_type_ids[0, column])):
            columns = list(run)
            found[:, 0, columns] += reach - found[:, 0, columns].min()
            reach = int(found[:, 0, columns].max()) + 1
        return found, torch.tensor([[reach - input_ids.shape[1]]])

    model.model.get_rope_index = counted


def reference(model, inputs, spec):
    """Greedy ids of ``tokentrim.trim``, and what it kept."""
    with tokentrim.trim(model, spec) as session:
        out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return out[0, inputs["input_ids"].shape[1] :].tolist(), session.trace.kept(0).tolist()


def of_several(model, processor, names, spec):
    """The same for several pictures, each pruned by itself, and where all that stays is in the prompt."""
    kept, before = [], 0
    for name in names:
        inputs = inputs_of(processor, [name])
        kept += [before + number for number in reference(model, inputs, spec)[1]]
        before += int(inputs["mm_token_type_ids"].bool().sum())
    inputs = inputs_of(processor, names)
    ids, found = reference(model, inputs, Listed(listed=tuple(kept)))
    assert found == kept
    visual = inputs["mm_token_type_ids"][0].bool()
    stays = ~visual
    stays[visual.nonzero()[:, 0][kept]] = True
    counted, _ = model.model.get_rope_index(
        **{name: inputs[name] for name in inputs if "pixel" not in name and name != "attention_mask"}
    )
    return {"names": names, "spec": spec, "expected": ids, "positions": counted[:, 0, stays].tolist(),
            "unpruned": counted[:, 0].tolist()}  # fmt: skip


def main(kind, out):
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        model, processor = small_qwen(kind, temporary)
        plain = {}  # where both agree, trim is asked as it is
        for name in ("portrait clip", "landscape clip"):
            inputs = inputs_of(processor, [name])
            plain[name] = [reference(model, inputs, {"name": strategy, "keep_ratio": 0.5})[0] for strategy in NAMES]
        behind_time(model)
        cases = [
            of_several(model, processor, names, {"name": strategy, "keep_ratio": ratio})
            for names in (*([name] for name in (*PICTURES, *CLIPS)), ["landscape", "portrait clip", "portrait"])
            for strategy in NAMES
            for ratio in RATIOS
        ]
        found: dict[str, Any] = {"plain": plain, "cases": cases}
        Path(out).write_text(json.dumps(found))
        serve(temporary, processor, found)
    Path(out).write_text(json.dumps(found))


def serve(folder, processor, found):
    from vllm import LLM, SamplingParams

    llm = LLM(  # so few tokens at once that prompts, and pictures in them, are run in pieces
        folder, dtype="float32", enforce_eager=True, max_model_len=1000, max_num_seqs=16, seed=0,
        max_num_batched_tokens=100, limit_mm_per_prompt={"image": 2, "video": 1},
        hf_overrides={"tokentrim": {"strategy": DEFAULT}},
    )  # fmt: skip
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker
    model = getattr(worker, "worker", worker).model_runner.model
    greedy = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)

    def asked(case):
        data: dict[str, Any] = {"image": [], "video": []}
        for name in case["names"]:
            if name in PICTURES:
                data["image"].append(picture(name))
                continue
            frames, *_, fps = CLIPS[name]
            about = {"total_num_frames": frames, "fps": fps, "do_sample_frames": False, "duration": frames / fps}
            about["frames_indices"] = list(range(frames))
            data["video"].append((np.stack([np.asarray(frame) for frame in clip(name).frames]), about))
        spec = {"mm_processor_kwargs": {"tokentrim": {"strategy": case["spec"]}, "do_sample_frames": False}}
        prompt = chat_text(processor, turns(case["names"]))
        return {"prompt": prompt, "multi_modal_data": {name: own for name, own in data.items() if own}, **spec}

    def answers(prompts):
        outs = llm.generate(prompts, greedy, use_tqdm=False)
        return [(list(one.outputs[0].token_ids), len(one.prompt_token_ids)) for one in outs]

    cases = found["cases"]
    for case, (ids, length) in zip(cases, answers([asked(case) for case in cases]), strict=True):
        case |= {"served": ids, "length": length}
    for case in cases[::5]:  # again, from the caches, and one after another
        ((case["again"], _),) = answers([asked(case)])
    entered: list[torch.Tensor] = []
    hook = model.register_forward_hook(
        lambda module, args, kwargs, out: entered.append(kwargs["positions"].clone()), with_kwargs=True
    )
    for case in cases:
        if case["spec"] != {"name": "divprune", "keep_ratio": 0.5}:
            continue
        entered.clear()
        llm.reset_prefix_cache()
        answers([asked(case)])
        length = case["length"]
        pieces = [one for one in entered if one.shape[1] > 1]
        case["entered"] = torch.cat(pieces, dim=1)[:, :length].tolist()
        case["steps"] = [one[:, 0].tolist() for one in entered[len(pieces) :]]
        case["by_vllm"] = by_vllm(model, processor, case["names"])
    hook.remove()


def by_vllm(model, processor, names):
    """Positions that vLLM's own class counts for the unpruned prompt."""
    from tokentrim.serve.vllm.qwen import PrunedQwen

    inputs = inputs_of(processor, names)
    ids, kinds = inputs["input_ids"][0].tolist(), inputs["mm_token_type_ids"][0].tolist()
    features, column, stamped = [], 0, model.config.model_type.startswith("qwen3")
    sizes = {modality: iter(inputs.get(f"{modality}_grid_thw", ())) for modality in ("image", "video")}
    for name in names:
        modality = "video" if name in CLIPS else "image"
        data = {f"{modality}_grid_thw": SimpleNamespace(data=next(sizes[modality]))}
        if modality == "video" and "second_per_grid_ts" in inputs:
            data["second_per_grid_ts"] = SimpleNamespace(data=inputs["second_per_grid_ts"][0])
        # Its first token: of a video with time stamps, the first of these, behind the mark in front of all of them.
        column = ids.index(model.config.vision_start_token_id, column) + 1
        features.append(SimpleNamespace(modality=modality, mm_position=SimpleNamespace(offset=column), data=data))
        for _ in range(CLIPS[name][0] // 2 if modality == "video" and stamped else 1):
            column = next(n for n in range(column, len(ids)) if kinds[n])
            column = next(n for n in range(column, len(ids)) if not kinds[n])
    return super(PrunedQwen, model).get_mrope_input_positions(ids, features)[0].tolist()


if __name__ == "__main__":
    main(*sys.argv[1:])
