"""One family in vLLM against ``tokentrim.trim`` on the same weights: ``python serve_family.py MODEL OUT.json``.

A process of its own, because a start of vLLM takes minutes: everything that is measured of a family shares one.
"""

# vLLM is not installed where types are checked.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}  # fmt: skip

import torch
from safetensors.torch import load_file, save_file

import tokentrim
from tokentrim.config.specs import strategy_from
from tokentrim.counting.forecast import plan
from tokentrim.errors import TokentrimError
from tokentrim.loading import chat_text, load_image, load_model, prompt_inputs, shape_of, single_turn
from tokentrim.testbed import model_folder

NAMES = ("random", "uniform", "fastervlm", "divprune", "visionzip")
RATIOS = (1.0, 0.5, 0.25)
SIZES = ((80, 80), (80, 112), (112, 80), (64, 104))  # width, height
QUESTION = "list all ?"
NEW_TOKENS = 24
DEFAULT = {"name": "divprune", "keep_ratio": 0.25}


def folder_of(name, into):
    """The shipped model as this vLLM can load it: CLIP's weights under the names that it knows, and of Qwen the base of
    the tower's rotary embedding that it takes for granted, and a file for videos.
    """
    folder = Path(shutil.copytree(model_folder(name), into / name))
    weights = {}
    for key, value in load_file(folder / "model.safetensors").items():
        plain = "vision_tower." in key and "vision_tower.vision_model." not in key
        weights[key.replace("vision_tower.", "vision_tower.vision_model.") if plain else key] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if "qwen" in name:
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"]["rope_parameters"]["rope_theta"] = 10000.0
        (folder / "config.json").write_text(json.dumps(config))
        processor = json.loads((folder / "processor_config.json").read_text())
        videos = {**processor["image_processor"], "video_processor_type": "Qwen2VLVideoProcessor"}
        videos.pop("image_processor_type")
        (folder / "video_preprocessor_config.json").write_text(json.dumps(videos))
    return folder


def pictures():
    scene = load_image("docs/examples/scene.png")
    return [scene.resize(size) for size in SIZES]


def cases(positions):
    """What is asked: every strategy, ratio and picture."""
    for strategy in NAMES:
        for ratio in RATIOS:
            for number in range(len(SIZES)):
                spec = {"name": strategy, "keep_ratio": ratio}
                yield {"spec": spec, "reference": {**spec, "positions": positions}, "picture": number}


def reference(model, processor, shown, spec):
    """Greedy ids of ``tokentrim.trim``, what it kept, and what was planned."""
    inputs = prompt_inputs(processor, [QUESTION], [[shown]])
    with tokentrim.trim(model, spec) as session:
        out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    report = session.report().to_dict()
    report["n_visual"] = round(report["n_visual"])
    report["text"] = inputs["input_ids"].shape[1] - report["n_visual"]
    return out[0, inputs["input_ids"].shape[1] :].tolist(), session.trace.kept(0).tolist(), report


def of_two(model, processor, shown, spec):
    """The same for two pictures, each pruned by itself, as their kept features in one prompt."""
    inputs = prompt_inputs(processor, [QUESTION], [shown])
    ids = inputs["input_ids"][0]
    visual = ids == model.config.image_token_id
    encoded = [prompt_inputs(processor, [QUESTION], [[one]])["pixel_values"] for one in shown]
    features = [model.model.get_image_features(pixel_values=one).pooler_output[0] for one in encoded]
    kept = [reference(model, processor, one, spec)[1] for one in shown]
    marks, first = ~visual, 0
    for own, feature in zip(kept, features, strict=True):
        columns = visual.nonzero()[first : first + len(feature), 0]
        marks[columns[own]] = True
        first += len(feature)
    embeds = model.get_input_embeddings()(ids)
    embeds[visual] = torch.cat(features)
    embeds = embeds[marks][None]
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    out = model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
    return out[0].tolist()


def refused(folder):
    """What is said before an engine starts."""
    from vllm.engine.arg_utils import EngineArgs

    said = {}
    for name, asked in {
        "nothing": None,
        "text": "divprune",
        "unknown": {"strategy": {"name": "divprun"}},
        "key": {"strategy": {"name": "divprune", "keep_rato": 0.5}},
        "inside": {"strategy": "fastv"},
        "fits": {"strategy": "divprune"},
    }.items():
        overrides = {} if asked is None else {"tokentrim": asked}
        try:
            config = EngineArgs(model=str(folder), hf_overrides=overrides).create_model_config()
            said[name] = config.architectures
        except TokentrimError as error:
            said[name] = str(error)
    return said


def main(name, out):
    found: dict[str, Any] = {"cases": []}
    shown = pictures()
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        folder = folder_of(name, Path(temporary))
        model, processor = load_model(folder, "cpu")
        positions = "keep" if "qwen" in name else "renumber"
        for case in cases(positions):
            ids, kept, report = reference(model, processor, shown[case["picture"]], case["reference"])
            planned = plan(strategy_from(case["reference"]).strategy, shape_of(folder), report["n_visual"], 1, 1)
            found["cases"].append(
                {**case, "expected": ids, "kept": len(kept), "planned": planned.usage.layer_tokens[0],
                 "of": report["n_visual"], "text": report["text"]}
            )  # fmt: skip
        found["two"] = {}
        if name == "testbed":  # elsewhere a prompt of embeddings lacks what the model asks for
            found["two"] = {"expected": of_two(model, processor, shown[:2], {**DEFAULT, "positions": positions})}
        Path(out).write_text(json.dumps(found))
        found["refused"] = refused(folder)
        Path(out).write_text(json.dumps(found))
        serve(folder, processor, shown, found)
    Path(out).write_text(json.dumps(found, indent=1))


def serve(folder, processor, shown, found):
    from prometheus_client import REGISTRY
    from vllm import LLM, SamplingParams

    llm = LLM(  # so few tokens at once that prompts, and pictures in them, are run in pieces
        str(folder), dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=16, seed=0,
        max_num_batched_tokens=200, limit_mm_per_prompt={"image": 2}, hf_overrides={"tokentrim": {"strategy": DEFAULT}},
    )  # fmt: skip
    greedy = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)

    def asked(images, spec=None):
        text = chat_text(processor, single_turn(QUESTION, len(images)))
        own = {} if spec is None else {"mm_processor_kwargs": {"tokentrim": {"strategy": spec}}}
        return {"prompt": text, "multi_modal_data": {"image": images}, **own}

    def answers(prompts):
        outs = llm.generate(prompts, greedy, use_tqdm=False)
        return [(list(one.outputs[0].token_ids), len(one.prompt_token_ids)) for one in outs]

    def counted():
        name, outcomes = "tokentrim:visual_tokens_total", ("kept", "dropped")
        return [REGISTRY.get_sample_value(name, {"outcome": outcome}) or 0 for outcome in outcomes]

    whole, before = found["cases"], counted()
    prompts = [asked([shown[case["picture"]]], case["spec"]) for case in whole]
    for case, (ids, length) in zip(whole, answers(prompts), strict=True):
        case |= {"served": ids, "length": length}
    found["counted"] = [after - start for after, start in zip(counted(), before, strict=True)]
    few = list(range(0, len(whole), 7))  # again, from the caches, and one after another
    for number in few:
        ((ids, _),) = answers([prompts[number]])
        whole[number]["again"] = ids
    found["default"] = answers([asked(shown[:1])])[0][0]
    found["two"]["served"], found["two"]["length"] = answers([asked(shown[:2])])[0]
    if "qwen" in str(folder):
        found["positions"] = positions(llm, folder, shown, asked, greedy)
    found["bad"] = []
    for spec in ({"name": "divprun"}, {"name": "fastv"}, {"name": "divprune", "keep_count": 0}, "st3.yaml"):
        try:
            answers([asked(shown[:1], spec)])
            found["bad"].append("")
        except ValueError as error:
            found["bad"].append(str(error))
    found["after"] = answers([asked(shown[:1])])[0][0]


def positions(llm, folder, shown, asked, greedy):
    """What entered the language model of a portrait and of a landscape, and what transformers counts there."""
    model, processor = load_model(folder, "cpu")
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker
    served, entered, found = getattr(worker, "worker", worker).model_runner.model, [], []
    hook = served.register_forward_hook(
        lambda module, args, kwargs, out: entered.append(kwargs["positions"].clone()), with_kwargs=True
    )
    for turned in (image.rotate(180) for image in shown[1:3]):  # which no cache knows
        entered.clear()
        spec = {"name": "fastervlm", "keep_ratio": 0.5}
        llm.generate([asked([turned], spec)], greedy, use_tqdm=False)
        inputs = prompt_inputs(processor, [QUESTION], [[turned]])
        visual = inputs["input_ids"] == model.config.image_token_id
        kept = reference(model, processor, turned, spec)[1]
        counted, _ = model.model.get_rope_index(
            inputs["input_ids"], visual.int(), image_grid_thw=inputs["image_grid_thw"]
        )
        stays = ~visual[0]
        stays[visual[0].nonzero()[:, 0][kept]] = True
        expected = counted[:, 0, stays]
        steps = [one[:, 0].tolist() for one in entered[1:]]
        found.append([entered[0][:, : expected.shape[1]].tolist(), expected.tolist(), steps, int(expected.max())])
    hook.remove()
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
