"""Ask a running server many random questions, broken ones among them, and look at its memory before and after.

    tokentrim serve testbed-plain --strategy st3 --port 8000 &
    python docs/examples/bench/soak.py http://127.0.0.1:8000/v1 --requests 2000 --clients 4 --pid $!

or a vLLM in which tokentrim prunes, started with --trust-request-mm-kwargs, --enable-prompt-tokens-details and a
--limit-mm-per-prompt of two images: a server says which of both it is. On CPUs vLLM's oneDNN prepares a matrix product
for every number of tokens, and keeps 1,024 of them: ONEDNN_PRIMITIVE_CACHE_CAPACITY=16 in its environment bounds that.

Pictures have random sizes and contents, and so have budgets; some requests are streams, some come without a picture or
with two, some clients hang up, and every third request is broken (vLLM refuses most of these itself, with a status and
words of its own). Exit code 1 when one is answered as it should not be, when the first question is answered otherwise
at the end, or when the server and the processes that it started have grown by more than --may-grow MiB since a tenth of
the requests. Needs Pillow and the standard library alone.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

BROKEN = ("cut", "noise", "no image", "file", "bomb", "no json", "no message", "budget", "video")
BROKEN_HERE = (*BROKEN, "unknown field", "cache")  # which vLLM passes over
SOUND = ("picture", "picture", "picture", "two pictures", "no picture", "stream", "hang up")


def png(draw: random.Random) -> bytes:
    """A picture of random size: noise, which does not compress, enlarged."""
    side = draw.randint(1, 16)
    small = Image.frombytes("RGB", (side, side), draw.randbytes(3 * side * side))
    held = io.BytesIO()
    small.resize((draw.randint(8, 400), draw.randint(8, 400))).save(held, "PNG")
    return held.getvalue()


def link(data: bytes) -> dict[str, Any]:
    """A picture as a part of a message."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}


def bomb() -> bytes:
    """A picture of a few bytes that says it is 60,000 pixels wide and high."""
    held = io.BytesIO()
    Image.new("1", (8, 8)).save(held, "PNG")
    data = bytearray(held.getvalue())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(data)


def budget_of(share: float, *, vllm: bool) -> dict[str, Any]:
    """How a request asks for a share of the visual tokens."""
    if vllm:
        return {"mm_processor_kwargs": {"tokentrim": {"strategy": {"name": "divprune", "keep_ratio": share}}}}
    return {"tokentrim": {"budget": share}}


def request_of(kind: str, model: str, draw: random.Random, new_tokens: int, *, vllm: bool) -> bytes:
    """The body of a request."""
    words = {"type": "text", "text": draw.choice(["list all ?", "color of ring ?", "where red ?", ""])}
    data = png(draw)
    pictures = {
        "two pictures": [link(data), link(png(draw))],
        "no picture": [],
        "cut": [link(data[: draw.randint(1, len(data) - 20)])],
        "noise": [link(draw.randbytes(draw.randint(1, 2000)))],
        "no image": [{"type": "image_url", "image_url": {"url": "data:text/plain;base64,aGVsbG8="}}],
        "file": [{"type": "image_url", "image_url": {"url": "file:///etc/hostname"}}],
        "bomb": [link(bomb())],
        "video": [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}],
    }
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": [*pictures.get(kind, [link(data)]), words]}],
        "max_tokens": draw.randint(1, new_tokens),
        "temperature": 0,
        "stream": kind in ("stream", "hang up"),
    }
    if vllm and body["stream"]:
        body["stream_options"] = {"include_usage": True}
    if kind not in ("no picture", "two pictures") and draw.random() < 0.5:
        body |= budget_of(draw.choice([0.5, 0.6, 0.7]), vllm=vllm)
    body |= {
        "no message": {"messages": []},
        "unknown field": {"temprature": 1},
        "budget": budget_of(2, vllm=vllm),
        "cache": {"generation_config": {"cache_implementation": "static"}},
    }.get(kind, {})
    return json.dumps(body).encode()[: 20 if kind == "no json" else None]


class Soak:
    """Random requests to one address, and what came of them."""

    def __init__(self, address: str, new_tokens: int, seed: int) -> None:
        self.address, self.new_tokens, self.seed = address.rstrip("/"), new_tokens, seed
        with urllib.request.urlopen(f"{self.address}/models", timeout=60) as found:
            said: dict[str, Any] = json.load(found)["data"][0]
        self.model: str = said["id"]
        self.vllm = said.get("owned_by") == "vllm"
        self.broken = BROKEN if self.vllm else BROKEN_HERE
        self.wrong: list[str] = []
        self.came = Counter[str]()
        self.control = self.answer_to_first()

    def one(self, number: int) -> None:
        """Ask one question, and note what is wrong with the answer."""
        draw = random.Random(f"{self.seed} {number}")
        kind = draw.choice(self.broken if number % 3 == 2 else SOUND)
        body = request_of(kind, self.model, draw, self.new_tokens, vllm=self.vllm)
        try:
            status, text = self.ask(body, hang_up=kind == "hang up")
        except OSError as cause:
            status, text = 0, f"{type(cause).__name__}: {cause}"
        self.came[f"{kind}: {status}"] += 1
        if kind not in self.broken:
            fits = status == 200
        elif self.vllm and kind != "budget":  # in vLLM's words
            fits = status >= 400 and bool(json.loads(text)["error"]["message"])
        else:
            fits = status == 400 and " must " in json.loads(text)["error"]["message"]
        if kind == "stream":
            kept = '"multimodal_tokens"' if self.vllm else '"kept_mean"'
            fits = fits and text.endswith("data: [DONE]\n\n") and kept in text
        if not fits:
            self.wrong.append(f"request {number}, {kind}: {status} {text[:300]}")

    def ask(self, body: bytes, *, hang_up: bool = False) -> tuple[int, str]:
        """(status, text) of a request; a client that hangs up reads a few bytes alone."""
        asked = urllib.request.Request(f"{self.address}/chat/completions", body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=600) as found:
                return found.status, found.read(16 if hang_up else None).decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def answer_to_first(self) -> tuple[str, float]:
        """What is said to a sound request, and what it keeps."""
        draw = random.Random(0)
        status, text = self.ask(request_of("picture", self.model, draw, self.new_tokens, vllm=self.vllm))
        if status != 200:
            raise SystemExit(f"the first question must be answered; got {status} {text}")
        found = json.loads(text)
        usage = found["usage"]
        said = found["choices"][0]["message"]["content"]
        if self.vllm:
            return said, usage["prompt_tokens_details"]["multimodal_tokens"]["image"]
        return said, usage["tokentrim"]["kept_mean"]


def memory(pid: int | None) -> float | None:
    """MiB that a process and those that it started hold, where Linux says so."""
    status = Path(f"/proc/{pid}/status")
    if pid is None or not status.exists():
        return None
    own = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS")) / 1024
    started = [int(one) for tasks in Path(f"/proc/{pid}/task").glob("*/children") for one in tasks.read_text().split()]
    return own + sum(memory(one) or 0.0 for one in started)


def main() -> int:
    """Soak a server."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("address")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pid", type=int, help="of the server, to look at its memory")
    parser.add_argument("--may-grow", type=float, default=64.0, help="MiB")
    given = parser.parse_args()
    soak = Soak(given.address, given.new_tokens, given.seed)
    warm, began, held = max(1, given.requests // 10), time.monotonic(), [memory(given.pid)]
    with ThreadPoolExecutor(given.clients) as pool:
        for first in range(0, given.requests, warm):
            list(pool.map(soak.one, range(first, min(first + warm, given.requests))))
            held.append(memory(given.pid))
            size = "" if held[-1] is None else f", the server holds {held[-1]:.0f} MiB"
            print(f"{min(first + warm, given.requests)} requests in {time.monotonic() - began:.0f} s{size}", flush=True)
    if soak.answer_to_first() != soak.control:
        soak.wrong.append("the first question is answered otherwise at the end")
    for kind, times in sorted(soak.came.items()):
        print(f"{times:6d}  {kind}")
    if held[1] is not None and held[-1] is not None:
        print(f"memory: {held[0]:.0f} MiB before, {held[1]:.0f} after a tenth, {held[-1]:.0f} at the end")
        if held[-1] - held[1] > given.may_grow:
            soak.wrong.append(f"the server grew by {held[-1] - held[1]:.0f} MiB since a tenth of the requests")
    print(*soak.wrong[:20], f"{len(soak.wrong)} wrong", sep="\n")
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
