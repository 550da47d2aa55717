# make bench-kvpress
"""The same random-weight LLaVA under tokentrim and under kvpress: time, memory, and rows of a padded batch.

kvpress needs an older transformers than tokentrim, so each side runs in an environment of its own, in turn, in fresh
processes. Both keep the same number of KV entries in every layer.

    python docs/examples/bench/against_kvpress.py PYTHON_WITH_TOKENTRIM PYTHON_WITH_KVPRESS [REPEATS]
"""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
TEXT, KEPT, NEW = 35, 144, 33  # text tokens, visual tokens kept of 576, new tokens

SIDES: dict[str, tuple[str, ...]] = {
    "tokentrim": ("untouched", "vta frozen", "fastv"),
    "kvpress": ("untouched", "TOVA", "SnapKV"),
}


def load(name: str) -> Any:
    """A module of the bench."""
    return importlib.import_module(f"tokentrim.bench.{name}")


def stand_in() -> None:
    """Let :func:`load` find modules that need torch alone; tokentrim itself wants a newer transformers."""
    for package in ("tokentrim", "tokentrim.bench"):
        module = ModuleType(package)
        module.__path__ = [str(ROOT / package.replace(".", "/"))]
        sys.modules[package] = module


def context(method: str, model: Any, text: int) -> AbstractContextManager[Any]:
    """``method`` on a prompt of ``text`` text tokens: KEPT visual entries stay in every layer's cache."""
    if method == "untouched":
        return nullcontext()
    if method in SIDES["tokentrim"]:
        from tokentrim import trim

        late = {"name": "vta", "ranking": "frozen", "horizon": 1, "floor": KEPT / 576}
        early = {"name": "fastv", "k": 2, "budget": {"layer_mean_ratio": KEPT / 576}}
        return trim(model, late if method == "vta frozen" else early)
    import kvpress  # pyright: ignore[reportMissingImports]  # of the other environment

    ratio = 1 - (text + KEPT + 0.5) / (text + 576)
    press = kvpress.TOVAPress(ratio) if method == "TOVA" else kvpress.SnapKVPress(ratio, window_size=16)
    return press(model)


def prompt(model: Any, geometry: Any, texts: list[int]) -> dict[str, Any]:
    """Left-padded rows of an image and so many text tokens; the last row is the same whatever stands above it."""
    import torch

    rows = [load("geometry").build_prompt(geometry, model, batch=1, prompt_tokens=n, seed=n) for n in texts]
    width = max(row["input_ids"].shape[1] for row in rows)
    pad = torch.nn.functional.pad
    return {
        "input_ids": torch.cat([pad(r["input_ids"], (width - r["input_ids"].shape[1], 0)) for r in rows]),
        "attention_mask": torch.cat(
            [pad(r["attention_mask"], (width - r["attention_mask"].shape[1], 0)) for r in rows]
        ),
        "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
    }


def measure(side: str) -> dict[str, Any]:
    """Every method of one side, in turn."""
    import torch
    import transformers

    if side == "kvpress":
        stand_in()
    geometries, timing = load("geometry"), load("measure")
    torch.set_num_threads(2)
    geometry = geometries.GEOMETRIES["scaled"]
    model = geometries.build_model(geometry, torch.device("cpu"), torch.float32, 0)
    found: dict[str, Any] = {}
    with torch.inference_mode():
        inputs = prompt(model, geometry, [TEXT])
        for method in SIDES[side]:
            run: Callable[[], Any] = lambda: timing.timed_generate(model, inputs, NEW)  # noqa: E731
            with context(method, model, TEXT):
                run()
            with context(method, model, TEXT):
                result = run()
            with context(method, model, TEXT):
                peak = timing.peak_bytes(model.device, run)
            # Rows of a batch are compared where they lose as much: kvpress takes a share of the padded length.
            logits = []
            for texts in ([TEXT], [3 * TEXT, TEXT]):
                batch = prompt(model, geometry, texts)
                with context(method, model, max(texts)):
                    out = model.generate(
                        **batch, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
                    )
                logits.append(torch.stack(out.logits)[:, -1])
            apart = (logits[0] - logits[1]).abs().amax() / logits[0].abs().amax()
            found[method] = {
                "first": result.prefill_seconds,
                "decode": result.decode_seconds_per_token,
                "peak": peak,
                "apart": float(apart),
            }
    return {"transformers": transformers.__version__, "torch": torch.__version__, "methods": found}


def main(interpreters: dict[str, str], repeats: int) -> None:
    """Alternate between the sides, and print a table of medians."""
    runs: dict[str, list[Any]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side, python in interpreters.items():
            done = subprocess.run([python, __file__, side], check=True, capture_output=True, text=True)
            runs[side].append(json.loads(done.stdout.splitlines()[-1]))
    print("| tool | method | first token, s | decode, ms per token | peak memory, MiB | padded row against alone |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for side, methods in SIDES.items():
        for method in methods:
            of = [run["methods"][method] for run in runs[side]]
            first, decode = ([one[name] for one in of] for name in ("first", "decode"))
            print(
                f"| {side}, transformers {runs[side][0]['transformers']} | {method} "
                f"| {statistics.median(first):.2f} [{min(first):.2f}, {max(first):.2f}] "
                f"| {statistics.median(decode) * 1e3:.1f} [{min(decode) * 1e3:.1f}, {max(decode) * 1e3:.1f}] "
                f"| {of[0]['peak'] / 2**20:.1f} | {of[0]['apart']:.1e} |"
            )


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1] in SIDES:
        print(json.dumps(measure(sys.argv[1])))
    elif len(sys.argv) in (3, 4):
        main(dict(zip(SIDES, sys.argv[1:3], strict=True)), int(sys.argv[3]) if len(sys.argv) == 4 else 3)
    else:
        raise SystemExit(__doc__)
