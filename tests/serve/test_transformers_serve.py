"""Transformers' server under a strategy: the answers of ``trim`` and ``generate``, what was kept, and refusals."""

import base64
import io
import json
import socket
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from transformers import GenerationConfig

from tokentrim.config.specs import strategy_from
from tokentrim.counting.forecast import plan
from tokentrim.errors import StrategyError, UnsupportedError
from tokentrim.loading import load_model, prompt_inputs
from tokentrim.plugins.loader import registry
from tokentrim.serve.transformers import answering, upstream
from tokentrim.serve.transformers.listening import listen
from tokentrim.serve.transformers.requests import Inquiry
from tokentrim.serve.transformers.server import Server
from tokentrim.session import trim

MODEL = "testbed-plain"
NEW = 12
SAMPLES = registry("task").get("list-all").samples("test", 2)
SPEC = {"name": "st3", "start": 1}


@pytest.fixture(scope="module")
def loaded():
    return load_model(MODEL, device="cpu")


@pytest.fixture(scope="module")
def url(loaded):
    with Server(MODEL, loaded, strategy_from(SPEC), listen("127.0.0.1", 0)) as server:
        yield server.url


def data_url(image, form="PNG"):
    held = io.BytesIO()
    image.save(held, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(held.getvalue()).decode()}"


def messages(*samples, text=None):
    pictures = [image for sample in samples for image in sample.images]
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text or samples[0].question}]}]


def body(*samples, **more):
    found = {"model": MODEL, "messages": messages(*(samples or SAMPLES[:1])), "max_tokens": NEW, "temperature": 0}
    return {**found, **more}


def post(url, data, path="/v1/chat/completions"):
    """(status, text) of a request."""
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    request = urllib.request.Request(url + path, data=text, headers={"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def answered(url, data):
    status, text = post(url, data)
    assert status == 200, text
    found = json.loads(text)
    return found["choices"][0]["message"]["content"], found["usage"]


def refused(url, data, status=400):
    got, text = post(url, data)
    assert got == status, text
    return json.loads(text)["error"]


def expected(loaded, spec, *samples, new=NEW):
    """(answer, report) of trim and generate."""
    pictures = [image for sample in samples for image in sample.images]
    inputs = prompt_inputs(loaded.processor, [samples[0].question], [pictures])
    with trim(loaded.model, spec) as session, torch.no_grad():
        output = loaded.model.generate(**inputs, max_new_tokens=new, do_sample=False)
    answer = output[0, inputs["input_ids"].shape[1] :]
    return loaded.processor.decode(answer, skip_special_tokens=True), session.report()


def agrees(usage, report):
    """Whether a usage says what a report does."""
    kept = usage["tokentrim"]
    assert kept["visual_tokens"] == report.n_visual
    assert kept["kept_mean"] == pytest.approx(report.layer_mean_tokens, abs=0.01)
    assert kept["kv_ratio"] == pytest.approx(report.kv_mean_ratio, abs=1e-4)
    assert kept["kv_end_ratio"] == pytest.approx(report.kv_end_ratio, abs=1e-4)
    assert kept["kv_read_ratio"] == pytest.approx(report.kv_read_ratio, abs=1e-4)
    assert kept["flops_ratio"] == pytest.approx(report.flops_ratio, abs=1e-4)
    return True


@pytest.mark.parametrize("sample", SAMPLES)
def test_an_answer_is_that_of_trim_and_its_usage_that_of_the_report(url, loaded, sample):
    answer, report = expected(loaded, SPEC, sample)
    got, usage = answered(url, body(sample))
    assert got == answer
    assert agrees(usage, report)
    assert usage["tokentrim"]["strategy"] == report.strategy
    kept = usage["tokentrim"]  # by default nothing of st3 leaves the cache while it answers, and less of it is seen
    assert 0 < kept["kv_read_ratio"] < kept["kv_end_ratio"] == kept["kv_ratio"] == kept["kept_ratio"] < 1
    assert usage["prompt_tokens"] > report.n_visual  # the prompt as it came
    assert usage["completion_tokens"] <= NEW


@pytest.mark.parametrize(
    "spec",
    [
        "none",
        "fastv",
        "pool",
        "fastervlm",
        "sgl",
        {"spatial": "fastv", "temporal": "vta"},
        {"name": "fastv", "budget": {"layer_mean_ratio": 0.4}},
    ],
    ids=str,
)
def test_every_kind_of_strategy_is_served(loaded, spec):
    answer, report = expected(loaded, spec, SAMPLES[0], new=4)
    with Server(MODEL, loaded, strategy_from(spec), listen("127.0.0.1", 0)) as server:
        got, usage = answered(server.url, body(max_tokens=4))
    assert got == answer
    assert agrees(usage, report)


def test_a_budget_is_solved_for_what_a_prompt_holds():
    loaded, spec = (
        load_model("testbed-qwen2.5-vl", device="cpu"),
        {"name": "fastv", "budget": {"layer_mean_ratio": 0.5}},
    )
    small = SAMPLES[0].images[0].resize((56, 84))
    with Server("qwen", loaded, strategy_from(spec), listen("127.0.0.1", 0)) as server:
        kept = []
        for image in (SAMPLES[0].images[0], small):
            parts = [
                {"type": "image_url", "image_url": {"url": data_url(image)}},
                {"type": "text", "text": "list all ?"},
            ]
            data = body(model="qwen", messages=[{"role": "user", "content": parts}], max_tokens=2)
            kept.append(answered(server.url, data)[1]["tokentrim"])
    assert kept[0]["visual_tokens"] != kept[1]["visual_tokens"]
    assert [one["kept_ratio"] for one in kept] == pytest.approx([0.5, 0.5], abs=0.05)


def test_a_request_may_bring_a_budget_of_its_own(url, loaded):
    answer, report = expected(loaded, {**SPEC, "budget": {"layer_mean_ratio": 0.7}}, SAMPLES[0], new=4)
    got, usage = answered(url, body(max_tokens=4, tokentrim={"budget": 0.7}))
    assert got == answer
    assert agrees(usage, report)
    assert usage["tokentrim"]["kept_ratio"] == pytest.approx(0.7, abs=0.05)


def test_a_budget_of_the_cache_is_solved_for_the_limit_of_the_request(loaded):
    served = answering.Served(MODEL, loaded, strategy_from({"name": "vta", "horizon": 64, "budget": {"kv_ratio": 0.6}}))
    inputs = prompt_inputs(loaded.processor, ["list all ?"], [SAMPLES[0].images])
    pictures = list(SAMPLES[0].images)
    found = served.strategy_for(Inquiry(served.spec, limit=200, pictures=pictures), inputs)
    usage = plan(found, served.found[1].shape, 100, new_tokens=200).usage
    assert usage.kv_mean_ratio == pytest.approx(0.6, abs=0.05)
    with pytest.raises(StrategyError, match="kv_ratio .* must be at least"):  # little is gone after 8 of 64 tokens
        served.strategy_for(Inquiry(served.spec, limit=8, pictures=pictures), inputs)


def test_settings_do_not_shorten_an_answer_and_no_bias_is_none(url):
    answer, usage = answered(url, body(max_tokens=30))
    settings = {"do_sample": False, "min_new_tokens": 30, "max_new_tokens": 30}
    assert answered(url, body(max_tokens=None, generation_config=settings))[1]["completion_tokens"] == 30
    settings = {"do_sample": False, "min_new_tokens": 22, "max_time": 60}
    assert answered(url, body(max_tokens=None, generation_config=settings))[1]["completion_tokens"] > 20
    assert answered(url, body(max_tokens=30, logit_bias={}))[0] == answer
    assert (
        answered(url, body(max_tokens=30, generation_config={"do_sample": False}))[1]["completion_tokens"]
        == (usage["completion_tokens"])
    )


@pytest.fixture
def watched(monkeypatch):
    """(set when the model is asked, why answers were broken off)."""
    begun, ended, require = threading.Event(), [], answering.require_wanted

    def spy(asked):
        begun.set()
        try:
            require(asked)
        except answering.Ended as error:
            ended.append(str(error))
            raise

    monkeypatch.setattr(answering, "require_wanted", spy)
    return begun, ended


ENDLESS = body(max_tokens=400, generation_config={"min_new_tokens": 400})


def test_an_answer_whose_client_has_left_is_broken_off(url, watched):
    begun, ended = watched
    text = json.dumps(ENDLESS).encode()
    host, port = url.removeprefix("http://").split(":")
    clients = [socket.create_connection((host, int(port))) for _ in range(2)]  # one is answered, one waits for its turn
    for client in clients:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(text) + text
        )
    assert begun.wait(60)
    for client in clients:
        client.close()
    assert answered(url, body(max_tokens=2))[1]["completion_tokens"] == 2
    assert ended == ["the client has left"] * 2


def test_a_server_that_stops_breaks_its_answers_off(loaded, watched):
    begun, ended = watched
    with ThreadPoolExecutor(2) as pool:
        with Server(MODEL, loaded, strategy_from(SPEC), listen("127.0.0.1", 0)) as server:
            whole = pool.submit(post, server.url, ENDLESS)
            stream = pool.submit(post, server.url, {**ENDLESS, "stream": True})
            assert begun.wait(60)
        status, text = whole.result(60)
        assert (status, "the server was stopped" in text.lower()) == (503, True)
        assert "the server was stopped" in stream.result(60)[1].lower()
    assert ended == ["the server was stopped"] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_limit_beyond_what_the_prompt_leaves_is_refused(url, stream):
    said = refused(url, body(max_tokens=500, stream=stream))["message"]
    assert said.startswith("max_tokens of the request must be at most 4")
    assert "of the model's 512 positions the prompt takes 1" in said
    words = [{"role": "user", "content": "list " * 600}]
    assert (
        "the prompt must leave some of the model's 512" in refused(url, body(messages=words, stream=stream))["message"]
    )


def test_an_answer_without_a_limit_ends_where_the_positions_do(loaded):
    served = answering.Served(MODEL, loaded, strategy_from(SPEC))
    asked, config = Inquiry(served.spec, limit=served.limits.usual), GenerationConfig()
    served.bound(asked, {"input_ids": torch.zeros(1, 500, dtype=torch.long)}, config)
    assert asked.limit == config.max_new_tokens == 12


def test_under_mrope_a_picture_takes_as_many_positions_as_its_longer_side_has_tokens():
    served = answering.Served("testbed-qwen2.5-vl", load_model("testbed-qwen2.5-vl", "cpu"), strategy_from("fastv"))
    pictures = [SAMPLES[0].images[0].resize(size) for size in ((56, 112), (112, 80))]
    inputs = prompt_inputs(served.loaded.processor, [SAMPLES[0].question], [pictures])
    sides = inputs["image_grid_thw"][:, 1:] // 2
    tokens, visual = inputs["input_ids"].shape[1], int(sides.prod(1).sum())
    asked, config = Inquiry(served.spec, limit=1 << 20, pictures=pictures), GenerationConfig()
    served.bound(asked, inputs, config)
    assert served.limits.most - asked.limit == tokens - visual + int(sides.max(1).values.sum())
    asked = Inquiry(served.spec, limit=1 << 20)
    served.bound(asked, {"input_ids": inputs["input_ids"]}, config)
    assert served.limits.most - asked.limit == tokens


def test_a_stream_says_the_same_and_ends_with_the_usage(url):
    answer, usage = answered(url, body())
    status, text = post(url, body(stream=True, stream_options={"include_usage": True}))
    *chunks, end = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert (status, end) == (200, "[DONE]")
    chunks = [json.loads(chunk) for chunk in chunks]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == answer
    told = chunks[-1]["usage"]
    timed = ("prefill_ms", "decode_ms")
    drop = lambda kept: {key: value for key, value in kept.items() if key not in timed}  # noqa: E731
    assert drop(told.pop("tokentrim")) == drop(usage.pop("tokentrim"))
    assert told == usage


def test_requests_at_once_are_answered_as_one_by_one(url):
    bodies = [body(SAMPLES[n % 2], max_tokens=4) for n in range(4)]
    alone = [answered(url, one)[0] for one in bodies]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: answered(url, one)[0], bodies))
    assert together == alone


def test_openais_client_reads_answers_streams_and_errors(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        found = client.chat.completions.create(**body(max_tokens=2))
        assert found.usage.tokentrim["visual_tokens"] > found.usage.tokentrim["kept_mean"]
        with client.chat.completions.create(**body(max_tokens=2), stream=True) as stream:
            *_, last = list(stream)
        assert last.usage.tokentrim["kv_ratio"] < 1
        with pytest.raises(openai.BadRequestError, match="messages of the request must hold one message"):
            client.chat.completions.create(model=MODEL, messages=[])


def picture_part(link, **more):
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": link, **more}}]}]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "the body of a request must be JSON"),
        (b"[1]", "the request must be a mapping"),
        (body(temprature=1), "Did you mean 'temperature'?"),
        (body(max_tokens=0), "max_tokens of the request must be"),
        (body(temperature="hot"), "temperature of the request must be a number"),
        (body(tokentrim={"budget": 2}), "budget of tokentrim of the request must lie in (0, 1]"),
        (body(tokentrim={"strategy": "st3"}), "each key of tokentrim of the request must be a known one"),
        (body(max_tokens=513), "max_tokens of the request must be at most 512"),
        (
            body(generation_config={"max_new_tokens": 513}),
            "max_new_tokens in generation_config of the request must be at",
        ),
        (body(logit_bias={"64": 1}), "each key of logit_bias of the request must be a token id of the model, 0 to 63"),
        (body(logit_bias={"blue": 1}), "each key of logit_bias of the request must be a token id"),
        (body(logit_bias={"1": "much"}), "logit_bias"),
        (body(logit_bias={"1": float("nan")}), "logit_bias of the request for token 1 must be a finite number"),
        (body(generation_config={"max_new_tokns": 4}), "Did you mean 'max_new_tokens'?"),
        (body(generation_config={"stop_strings": ["a"]}), "got 'stop_strings'"),
        (body(generation_config={"return_dict_in_generate": True}), "got 'return_dict_in_generate'"),
        (
            body(generation_config={"num_return_sequences": 2}),
            "num_return_sequences of generation_config of the request",
        ),
        (body(generation_config={"suppress_tokens": [64]}), "suppress_tokens of generation_config of the request must"),
        (body(generation_config={"num_beams": 2}, stream=True), "must be 1 in a stream"),
        (body(messages=[{"role": "user", "content": "a", "contents": "b"}]), "Did you mean 'content'?"),
        (
            body(messages=[{"role": "user", "content": [{"type": "text", "text": "a", "txt": "b"}]}]),
            "each key of content[0] of messages[0] of the request must be a known one",
        ),
        (body(messages=picture_part("", size=3)), "each key of image_url in content[0] of messages[0]"),
        (body(messages=picture_part("", detail="low")), "detail of image_url in content[0] of messages[0]"),
        (
            body(messages=[{**messages(SAMPLES[0])[0], "role": "assistant", "tool_calls": []}]),
            "must hold tool_calls or pictures, not both",
        ),
        (body(n=2), "n of the request must be"),
        (body(logprobs=True), "logprobs of the request must be"),
        (body(response_format={"type": "json_object"}), "response_format of the request must be"),
        (body(stop="a", stream=True), "stop of the request must come without stream"),
        (body(messages=[]), "messages of the request must hold one message"),
        (body(messages=["hello"]), "messages[0] of the request must be a mapping with a role"),
        (body(messages=[{"role": "user"}]), "content of messages[0] of the request must be text"),
        (
            body(messages=[{"role": "user", "content": [{"type": "video_url"}]}]),
            "Send the frames of a video as pictures",
        ),
        (body(messages=picture_part("https://example.com/a.png")), "Nothing is fetched and no file is read"),
        (body(messages=picture_part("/etc/passwd")), "must be a data: URL"),
        (body(messages=picture_part("data:image/png;base64,AAAA")), "cannot identify image file"),
        (body(messages=picture_part(data_url(SAMPLES[0].images[0])[:400])), "must be readable"),
        (body(messages=picture_part(data_url(SAMPLES[0].images[0])[:-200])), "must be readable"),
        (body(generation_config="{"), "generation_config of the request must be settings"),
        (body(generation_config={"cache_implementation": "static"}), "must be a plain DynamicCache"),
        (
            body(chat_template_kwargs={"chat_template": "{{ 1 / 0 }}"}),
            "must be a variable of the model's chat template",
        ),
        (
            body(chat_template_kwargs={"add_generation_prompt": False}),
            "must be a variable of the model's chat template",
        ),
        (body(chat_template_kwargs={"num_frame": 2}), "got 'num_frame'. Did you mean 'num_frames'?"),
        (body(stream=1), "stream of the request must be true or false; got 1"),
    ],
    ids=lambda value: None if isinstance(value, dict | bytes) else value[:40],
)
def test_what_cannot_be_answered_is_refused_in_our_words(url, data, said):
    error = refused(url, data)
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


def test_after_all_these_answers_are_what_they_were(url, loaded):
    assert answered(url, body())[0] == expected(loaded, SPEC, SAMPLES[0])[0]


def test_other_models_and_addresses_are_not_there(url):
    assert "Known: testbed-plain" in refused(url, body(model="testbed"), 404)["message"]
    status, text = post(url, {}, "/v1/responses")
    assert status == 404
    assert "a request must be for one of /v1/chat/completions" in json.loads(text)["error"]["message"]
    with urllib.request.urlopen(f"{url}/health", timeout=10) as response:
        assert json.load(response)["strategy"]["name"] == "st3"


def test_a_stream_that_fails_ends_with_the_error(url):
    status, text = post(url, body(stream=True, generation_config={"cache_implementation": "static"}))
    last, end = [line.removeprefix("data: ") for line in text.splitlines() if line][-2:]
    assert (status, end) == (200, "[DONE]")
    assert "got \"cache_implementation='static'\"" in json.loads(last)["error"]["message"]


def test_prompts_without_pictures_are_answered(url):
    for content in ("list all ?", "", [{"type": "text", "text": "list all ?"}]):
        _, usage = answered(url, body(messages=[{"role": "user", "content": content}], max_tokens=2))
        assert usage["tokentrim"]["visual_tokens"] == 0
        assert [usage["tokentrim"][key] for key in ("kv_bytes", "prefill_ms", "decode_ms")] == [None] * 3


def test_several_turns_and_pictures_are_one_prompt(url):
    said = [*messages(*SAMPLES), {"role": "assistant", "content": "a red ring"}, {"role": "user", "content": "and ?"}]
    assert answered(url, body(messages=said, max_tokens=2))[1]["tokentrim"]["visual_tokens"] == 2 * 100


def test_an_answer_ends_before_a_stop_text(url):
    whole, _ = answered(url, body())
    stop = whole.split()[2]
    assert answered(url, body(stop=[stop]))[0] == whole.partition(stop)[0]


def test_a_seed_makes_sampling_repeatable(url):
    drawn = [answered(url, body(temperature=2, seed=seed))[0] for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_what_breaks_one_answer_breaks_no_other(url, loaded, monkeypatch):
    def broken(**inputs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(loaded.model, "generate", broken)
    error = refused(url, body(), 500)
    assert error["message"] == "an answer must be generated. RuntimeError: out of memory."
    assert error["type"] == "server_error"
    monkeypatch.undo()
    assert answered(url, body(max_tokens=2))[1]["tokentrim"]["visual_tokens"] == 100


def test_a_missing_part_of_transformers_is_named(monkeypatch):
    upstream.require_server()
    gone = {"model_manager.ModelManager": {"_read_model": ()}}
    monkeypatch.setattr(upstream, "SEAMS", gone)
    with pytest.raises(UnsupportedError, match=r"have ModelManager._read_model\(\); got 'transformers .*5.18 to"):
        upstream.require_server()
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    with pytest.raises(UnsupportedError, match=r"pip install 'tokentrim.*\[serve\]'"):
        upstream.require_server()
