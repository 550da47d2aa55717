"""Videos over HTTP: the answers of ``trim``, what of a file is read, and refusals by name."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.watching
from tests.serve.test_transformers_serve import SAMPLES, agrees, answered, messages, post, refused
from tokentrim.config.specs import strategy_from
from tokentrim.loading import conversation_inputs, load_model, load_video, single_turn
from tokentrim.serve.transformers.listening import listen
from tokentrim.serve.transformers.server import Server
from tokentrim.session import trim

MODEL = "testbed-qwen2.5-vl"
SPEC = {"name": "fastv", "k": 2, "keep_ratio": 0.5}
NEW = 8
watching = tests.watching.watching


@pytest.fixture
def loaded(watching):
    return load_model(MODEL, "cpu")


@pytest.fixture
def url(loaded):
    with Server(MODEL, loaded, strategy_from(SPEC), listen("127.0.0.1", 0)) as server:
        yield server.url


@pytest.fixture
def film(tmp_path):
    """A second of four frames."""
    scene = SAMPLES[0].images[0].resize((56, 112))
    scene.save(
        tmp_path / "a.gif", save_all=True, append_images=[scene.rotate(by) for by in (90, 180, 270)], duration=250
    )
    return tmp_path / "a.gif"


def about(data, kind="video/gif", **more) -> dict[str, Any]:
    """A request about a video."""
    link = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    content = [{"type": "video_url", "video_url": {"url": link}}, {"type": "text", "text": "list all ?"}]
    return {
        "model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": NEW, "temperature": 0, **more,
    }  # fmt: skip


def expected(loaded, film: Path, frames, spec):
    """(answer, report) of trim and generate."""
    turns = single_turn("list all ?", 0, 1)
    inputs = conversation_inputs(loaded.processor, [turns], [[]], [load_video(film, frames)])
    with trim(loaded.model, spec) as session, torch.no_grad():
        output = loaded.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    answer = output[0, inputs["input_ids"].shape[1] :]
    return loaded.processor.decode(answer, skip_special_tokens=True).strip(), session.report()


@pytest.mark.parametrize("frames", [None, 2])
def test_an_answer_about_a_video_is_that_of_trim(url, loaded, film, frames):
    more = {} if frames is None else {"chat_template_kwargs": {"num_frames": frames}}
    answer, usage = answered(url, about(film.read_bytes(), **more))
    told = loaded.processor.times[-1]
    wanted, report = expected(loaded, film, frames or 16, SPEC)
    assert answer == wanted
    assert agrees(usage, report)
    assert report.n_visual == (frames or 4) // 2 * 7 * 14
    assert told == loaded.processor.times[-1]
    assert told["fps"] == (frames or 4)  # of a video of one second


def test_a_stream_about_a_video_and_a_picture_says_the_same_and_no_prompt(url, film):
    asked = about(film.read_bytes())
    asked["messages"][0]["content"].insert(0, messages(SAMPLES[0])[0]["content"][0])
    answer, _ = answered(url, asked)
    _, text = post(url, {**asked, "stream": True})
    chunks = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line and "[DONE]" not in line]
    assert "".join(one["choices"][0]["delta"].get("content") or "" for one in chunks if one["choices"]) == answer
    assert answer
    assert not set(answer) & set("<>|")


def test_a_video_has_its_budget(url, loaded, film):
    _, usage = answered(url, about(film.read_bytes(), "image/gif", tokentrim={"budget": 0.75}))
    assert usage["tokentrim"]["kept_ratio"] == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize(
    ("data", "more", "said"),
    [
        (b"#EXTM3U\nhttp://127.0.0.1/a.ts", {}, "the video in content[0] of messages[0] of the request must be an MP4"),
        (b"GIF89a", {}, "the video in content[0] of messages[0] of the request must be readable; got '6 bytes'"),
        (b"....ftypisom", {}, "the video in content[0] of messages[0] of the request must"),
        (b"GIF89a", {"kind": "text/plain"}, "must be a data: URL, data:video/mp4;base64"),
        (b"GIF89a", {"chat_template_kwargs": {"num_frames": 0}}, "num_frames in chat_template_kwargs must be"),
    ],
    ids=["playlist", "cut", "mp4", "text", "frames"],
)
def test_what_is_no_video_is_refused_by_name(url, data, more, said):
    error = refused(url, about(data, **more))["message"]
    assert error.startswith(said) or said in error
    assert "/tmp" not in json.dumps(error)


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside one that is shown"])
def test_a_video_that_the_chat_template_leaves_out_is_refused(url, loaded, film, beside, monkeypatch):
    make = loaded.processor.apply_chat_template

    def deaf(turns, **options):  # to all parts of a system's message but its words
        heard = [
            {**turn, "content": [part for part in turn["content"] if turn["role"] == "user" or part["type"] == "text"]}
            for turn in turns
        ]
        return make(heard, **options)

    monkeypatch.setattr(loaded.processor, "apply_chat_template", deaf)
    asked = about(film.read_bytes())
    asked["messages"].append({"role": "user", "content": "list all ?"})
    answered(url, asked)
    asked["messages"][0]["role"] = "system"
    if beside:
        asked["messages"][1]["content"] = about(film.read_bytes())["messages"][0]["content"]
    said = refused(url, asked)["message"]
    assert said.startswith("the video in content[0] of messages[0] of the request must have a place in the prompt")
    assert "got 'role system'" in said


def test_a_model_whose_processor_takes_no_videos_refuses_them(film):
    with Server(
        "testbed-plain", load_model("testbed-plain", "cpu"), strategy_from("fastv"), listen("127.0.0.1", 0)
    ) as s:
        said = refused(s.url, {**about(film.read_bytes()), "model": "testbed-plain"})["message"]
    assert said.startswith("the type of content[0] of messages[0] of the request must be text or image_url")
    assert "takes no videos" in said
