"""Requests per second and time to first token of two vLLM servers, one that prunes and one that does not.

    python docs/examples/bench/vllm_throughput.py make runs/served --geometry scaled-2
    vllm serve runs/served --load-format dummy ... --port 8001 &
    vllm serve runs/served --load-format dummy ... --port 8002 --hf-overrides '{"tokentrim": {"strategy": ...}}' &
    python docs/examples/bench/vllm_throughput.py ask http://127.0.0.1:8001/v1 http://127.0.0.1:8002/v1

The first command writes a model of a geometry without weights, which vLLM makes up. The last asks both in turn, as many
clients at once as --clients says, each with pictures that nobody saw before; start both servers with
--enable-prompt-tokens-details, which tells what was kept. Medians over rounds, and half the distance of the quartiles;
ratios are of servers in the same round. Implied: FLOPs of all requests, and of what precedes a first token.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import shutil
import statistics
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tokentrim.bench.geometry import GEOMETRIES
from tokentrim.counting.costs import Usage
from tokentrim.counting.shape import ModelShape
from tokentrim.loading import shape_of
from tokentrim.runs.spread import Spread
from tokentrim.testbed import model_folder

QUESTION = "where is the red ring ? " * 5


def make(folder: Path, name: str) -> None:
    """Write config and processor of a geometry, with the words of the shipped model."""
    geometry: Any = GEOMETRIES[name]
    shutil.copytree(model_folder("testbed"), folder, ignore=shutil.ignore_patterns("*.safetensors", "README.md"))
    config = geometry.config()
    config.architectures = [geometry.architecture]
    config.image_token_id = json.loads((folder / "config.json").read_text())["image_token_index"]
    config.save_pretrained(folder)
    said = json.loads((folder / "processor_config.json").read_text())
    size = {"height": geometry.image_size, "width": geometry.image_size}
    said["image_processor"] |= {"size": size, "crop_size": size}
    (folder / "processor_config.json").write_text(json.dumps(said | {"patch_size": geometry.patch}))


@dataclass(frozen=True)
class Asked:
    """What came of one request.

    Attributes:
        first: seconds until the first token.
        text: tokens of the prompt that are no visual ones.
        visual: visual tokens that the language model saw.
        new: tokens of the answer.
    """

    first: float
    text: int
    visual: int
    new: int

    def flops(self, shape: ModelShape, whole: int) -> tuple[int, int]:
        """FLOPs until the first token, and of the request; of a picture that had ``whole`` visual tokens."""
        layers = (self.visual,) * shape.n_layers
        usage = Usage(shape, whole, self.text, layers, (layers,) * (self.new - 1))
        return usage.prefill_flops_whole, usage.prefill_flops_whole + usage.decode_flops


class Served:
    """One of the servers."""

    def __init__(self, address: str, new_tokens: int) -> None:
        self.address, self.new_tokens = address.rstrip("/"), new_tokens
        with urllib.request.urlopen(f"{self.address}/models", timeout=60) as found:
            self.model: dict[str, Any] = json.load(found)["data"][0]

    def ask(self, draw: random.Random) -> Asked:
        """Show it a picture that nobody saw before."""
        held = io.BytesIO()
        Image.frombytes("RGB", (8, 8), draw.randbytes(192)).resize((336, 336)).save(held, "PNG")
        link = f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
        parts = [{"type": "image_url", "image_url": {"url": link}}, {"type": "text", "text": QUESTION}]
        body = {
            "model": self.model["id"], "messages": [{"role": "user", "content": parts}], "temperature": 0,
            "max_tokens": self.new_tokens, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        request = urllib.request.Request(
            f"{self.address}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        began, first, usage = time.perf_counter(), 0.0, {}
        with urllib.request.urlopen(request, timeout=600) as lines:
            for line in lines:
                if line.startswith(b"data: {"):
                    first = first or time.perf_counter() - began
                    usage = json.loads(line[6:]).get("usage") or usage
        visual = usage["prompt_tokens_details"]["multimodal_tokens"]["image"]
        return Asked(first, usage["prompt_tokens"] - visual, visual, usage["completion_tokens"])

    def round(self, clients: int, requests: int, seed: str) -> tuple[float, float, Asked]:
        """Requests per second, median of the seconds to first tokens, and one of the requests."""
        draws = [random.Random(f"{seed} {number}") for number in range(requests)]
        began = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            found = list(pool.map(self.ask, draws))
        return requests / (time.perf_counter() - began), statistics.median(one.first for one in found), found[0]


def ask(servers: tuple[Served, Served], clients: list[int], rounds: int) -> None:
    """Ask the server that prunes nothing and the one that prunes, in turn, and print a table."""
    examples = [server.round(2, 2, "warm")[2] for server in servers]
    shape, whole = shape_of(servers[0].model["root"]), examples[0].visual
    (first, request), (first_pruned, request_pruned) = (one.flops(shape, whole) for one in examples)
    print(
        f"{whole} and {examples[1].visual} visual tokens, {examples[0].text} others, {examples[0].new} new; medians of"
    )
    print(f"{rounds} rounds, and half the distance of the quartiles\n")
    print("| clients | requests/s, unpruned | pruned | ratio | implied | s to first token, unpruned | pruned | ratio |")
    print("| ---: " * 8 + "|")
    for n in clients:
        rates: list[tuple[float, float]] = []
        waits: list[tuple[float, float]] = []
        for number in range(rounds):
            turn = 1 if number % 2 else -1  # whoever was second is first
            found = [server.round(n, max(4, n), f"{n} {number}") for server in servers[::-turn]][::-turn]
            rates.append((found[0][0], found[1][0]))
            waits.append((found[0][1], found[1][1]))
        columns = [Spread.of(one) for one in (*zip(*rates, strict=True), [b / a for a, b in rates])]
        seconds = [Spread.of(one) for one in (*zip(*waits, strict=True), [a / b for a, b in waits])]
        cells = [*(one.text() for one in columns), f"{request / request_pruned:.2f}", *(one.text() for one in seconds)]
        print("|", " | ".join([str(n), *cells]), "|", flush=True)
    print(f"\nFLOPs imply a ratio of {first / first_pruned:.2f} for the first token of a request that is alone.")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    do = parser.add_subparsers(required=True, dest="do")
    makes = do.add_parser("make")
    makes.add_argument("folder", type=Path)
    makes.add_argument("--geometry", default="scaled-2")
    asks = do.add_parser("ask")
    asks.add_argument("plain")
    asks.add_argument("pruned")
    asks.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    asks.add_argument("--rounds", type=int, default=3)
    asks.add_argument("--new-tokens", type=int, default=8)
    given = parser.parse_args()
    if given.do == "make":
        make(given.folder, given.geometry)
    else:
        servers = Served(given.plain, given.new_tokens), Served(given.pruned, given.new_tokens)
        ask(servers, given.clients, given.rounds)


if __name__ == "__main__":
    main()
