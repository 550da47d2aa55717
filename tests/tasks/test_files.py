"""Tasks in files: every form of table, what a name means, and what is said of lines that cannot be asked."""

import importlib
import importlib.util
import json
import os
import sys

import pytest
from PIL import Image

from tokentrim.compare.config import load_compare
from tokentrim.errors import ConfigError, DataError, UnknownNameError, UnsupportedError
from tokentrim.plugins.loader import registry
from tokentrim.runs.questions import questions_of, require_questions
from tokentrim.runs.specs import TaskSpec
from tokentrim.tasks.metrics import METRICS

RED = {"image": "red.png", "question": "what ?", "answer": "red"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for color in ("red", "blue"):
        Image.new("RGB", (8, 8), color).save(f"{color}.png")
    return tmp_path


def write(*rows, name="mine.jsonl"):
    text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    with open(name, "w", encoding="utf-8") as file:
        file.write(text)
    return name


def task(name):
    return registry("task").get(name)


def said_of(*rows, name="mine.jsonl"):
    with pytest.raises(DataError) as error:
        task(write(*rows, name=name))
    return str(error.value)


def test_a_file_is_a_task(folder):
    found = task(write(RED, "", {**RED, "image": "blue.png", "answers": ["blue", "navy"], "answer": None, "id": "b"}))
    first, second = found.samples("test", 2)
    assert (first.id, first.question, first.answer, first.images[0].getpixel((0, 0))) == (
        "mine.jsonl:1", "what ?", "red", (255, 0, 0),
    )  # fmt: skip
    assert second.id == "b"
    assert (found.score(first, "Red."), found.score(second, "navy"), found.score(second, "red")) == (1.0, 1.0, 0.0)
    assert (found.metric, found.metric_name, found.count("test"), found.count("calibration")) == (
        "exact",
        "exact",
        2,
        0,
    )


def test_csv_tsv_json_and_folders(folder):
    line = 'red.png,"what,\nthen ?",red|crimson\nblue.png,what ?,"[""blue""]"\n'
    write(f"images,question,answers\n{line}", name="a.csv")
    first, second = task("a.csv").samples("test", 2)
    assert (first.id, first.question, task("a.csv").score(first, "crimson")) == ("a.csv:2", "what,\nthen ?", 1.0)
    assert (second.id, second.answer) == ("a.csv:4", "blue")
    write("image\tquestion\tanswer\nred.png\tis it ?\tyes", name="b.tsv")
    assert task("b.tsv").metric_name == "yes-no"
    write(json.dumps([RED]), name="c.json")
    assert task("c.json").samples("test", 1)[0].id == "c.json, entry 1"
    os.mkdir("set")
    os.rename("red.png", "set/red.png")
    write({"file_name": "red.png", "question": "what ?", "answer": "red"}, name="set/metadata.jsonl")
    assert task("set/").samples("test", 1)[0].answer == "red"
    assert TaskSpec.model_validate({"task": "set", "metric": "f1"}).task == "set/@f1"
    write(RED, name="set/questions.jsonl")
    with pytest.raises(DataError, match="hold one file of questions"):
        task("set/")


def test_parquet_needs_pyarrow(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    write("no parquet", name="a.parquet")
    with pytest.raises(UnsupportedError, match=r"tokentrim-vlm\[parquet\]"):
        task("a.parquet")


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")
def test_parquet_with_bytes(folder):
    pyarrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    content = (folder / "blue.png").read_bytes()
    rows = [{"image": {"bytes": content, "path": "x.png"}, "question": "what ?", "answer": "blue"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), "a.parquet")
    (sample,) = task("a.parquet").samples("test", 1)
    assert (sample.id, sample.images[0].getpixel((0, 0))) == ("a.parquet, row 1", (0, 0, 255))
    write("no parquet", name="b.parquet")
    with pytest.raises(DataError, match="be parquet"):
        task("b.parquet")


def test_choices_are_written_into_the_question(folder):
    row = {**RED, "question": "Which ?", "choices": ["blue", "red"]}
    found = task(write(row, {**row, "answer": 0}, {**row, "answer": "B"}))
    first, second, third = found.samples("test", 3)
    assert found.metric_name == "choice"
    assert first.question.split("\n")[:3] == ["Which ?", "A. blue", "B. red"]
    assert [sample.answer for sample in (first, second, third)] == ["B", "A", "B"]
    assert (found.score(first, "B"), found.score(second, "blue"), found.score(third, "blue")) == (1.0, 1.0, 0.0)


def test_choices_stand_under_the_last_turn_of_a_conversation(folder):
    talk = [{"role": "user", "content": "what ?"}, {"role": "assistant", "content": "?"}]
    talk.append({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which ?"}]})
    row = {"image": "red.png", "messages": talk, "choices": ["blue", "red"], "answer": "red"}
    (sample,) = task(write(row)).samples("test", 1)
    assert sample.question.split("\n")[:3] == ["Which ?", "A. blue", "B. red"]
    assert sample.messages[-1]["content"][-1]["text"].startswith("\nA. blue\nB. red\n")
    assert "A. blue" not in str(sample.messages[:-1])


def test_a_number_is_a_choice_in_csv_as_in_json(folder):
    write("image,question,choices,answer\nred.png,Which ?,red|blue|green,1\nred.png,How many ?,1|2|3,2\n", name="a.csv")
    assert [sample.answer for sample in task("a.csv").samples("test", 2)] == ["B", "B"]


def test_conversations(folder):
    talk = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [{"type": "image", "image": "blue.png"}, {"type": "text", "text": "and this ?"}]},
    ]
    (sample,) = task(write({"image": "red.png", "messages": talk, "answer": "blue"})).samples("test", 1)
    assert sample.question == "and this ?"
    assert [turn["role"] for turn in sample.messages] == ["user", "assistant", "user"]
    assert [picture.getpixel((0, 0)) for picture in sample.images] == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hi", "list of {role, content}"),
        ([{"role": "assistant", "content": [{"type": "image"}]}], "end with a turn of the user"),
        ([{"role": "user", "content": "what ?"}], "1 of 'images' have none"),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}], "more images than"),
        (
            [{"role": "user", "content": [{"type": "image"}, {"type": "video"}]}],
            "for each of the 0 in 'video', and no more; got 1",
        ),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "sound"}]}], "text and images only; got 'sound'"),
    ],
)
def test_conversations_that_are_none(folder, messages, said):
    assert said in said_of({"image": "red.png", "messages": messages, "answer": "blue"})


def test_groups_splits_and_metrics(folder):
    rows = [{**RED, "group": "warm"}, {**RED, "image": "blue.png", "group": "cold", "split": "train"}]
    write(*rows)
    assert [sample.id for sample in task("mine.jsonl#warm").samples("test", 9)] == ["mine.jsonl:1"]
    assert [sample.id for sample in task("mine.jsonl@f1").samples("calibration", 9)] == ["mine.jsonl:2"]
    assert task("mine.jsonl#cold@contains").metric_name == "contains"
    with pytest.raises(DataError, match="be of the test split"):
        task("mine.jsonl#cold").samples("test", 1)
    with pytest.raises(ConfigError, match="Did you mean 'warm'"):
        task("mine.jsonl#warn")
    with pytest.raises(UnknownNameError, match="Did you mean 'anls'"):
        task("mine.jsonl@anlz")
    write({**rows[0], "split": "test"}, {**rows[1], "image": "./red.png"})
    with pytest.raises(DataError, match=r"mine.jsonl:2: a picture must be in one split.* mine.jsonl:1 \(test\)"):
        task("mine.jsonl")


def test_all_answers_together_may_have_a_number_of_their_own(folder):
    rows = [{**RED, "answer": answer} for answer in ("yes", "yes", "no")]
    found = task(f"{write(*rows)}@yes-no-recall")
    answered = list(zip(found.samples("test", 3), ("yes", "no", "no"), strict=True))
    assert found.aggregate(answered) == 0.5
    assert task("mine.jsonl@yes-no").aggregate(answered) is None


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"image": "red.png"', "must be one JSON object; it has Expecting ',' delimiter at column 20"),
        ("[]", "a question must be an object"),
        ({"question": "a", "answer": "b"}, "'image' must be given: the picture's file, or a 'video'"),
        ({"image": "red.png", "answer": "b"}, "'question' must be given"),
        ({"image": "red.png", "question": "a", "anwser": "b"}, "'answer' must be given: .*is 'anwser' meant"),
        ({**RED, "answer": ""}, "'answer' must not be empty"),
        ({**RED, "answer": {}}, "'answer' must be text; got dict"),
        ({**RED, "answers": ["b"]}, "'answer' or 'answers', not both"),
        ({**RED, "question": " "}, "'question' must be text"),
        ({**RED, "image": "green.png"}, "an existing file; got 'green.png'"),
        ({**RED, "image": "mine.jsonl"}, "one that Pillow reads; got 'mine.jsonl'"),
        ({**RED, "image": "https://a.b/c.png"}, "nothing is downloaded"),
        ({**RED, "image": 3}, "a path, or bytes in parquet; got int"),
        ({**RED, "images": ["red.png"]}, "once; got both 'image' and 'images'"),
        ({**RED, "split": "tset"}, "be one of test, calibration, train, validation; got 'tset'"),
        ({**RED, "choices": ["red"]}, "2 to 26 texts; got 1"),
        ({**RED, "choices": ["red", "blue"], "answer": 2}, "from 0 to 1; got 2"),
        ({**RED, "choices": [1, 2, 3], "answer": 2}, "be a letter: 2 is one choice's text and another's number"),
        ({**RED, "frames": 4}, "'frames' must stand beside a 'video'"),
        ('{"image": "red.png", "question": "?", "answer": NaN}', "'answer' must be text; got float"),
        ({**RED, "messages": []}, "'question' or 'messages', not both"),
        ({**RED, "id": "mine.jsonl:1"}, "'mine.jsonl:1' is that of mine.jsonl:1 too"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(folder, row, said):
    import re

    assert re.search(rf"mine\.jsonl:2: .*{said}", said_of(RED, row))


def test_all_bad_lines_are_named_and_many_are_counted(folder):
    said = said_of(*["{"] * 12).split("\n")
    assert [line.partition(": ")[0] for line in said[:2]] == ["mine.jsonl:1", "mine.jsonl:2"]
    assert (len(said), said[-1]) == (11, "... and 2 more")


def test_a_metric_that_cannot_score_a_line_is_named(folder):
    write(RED)
    with pytest.raises(DataError, match=r"mine.jsonl:1: the answer must be yes or no \(metric yes-no\)"):
        task("mine.jsonl@yes-no")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "image,question,answer\nred.png,a\n", "a.csv:2: the line must have 3 cells, as the first; got 2"),
        ("a.csv", 'image,question,answer\nred.png,a,"b\n', "a.csv:2: the line must be well-formed CSV"),
        ("a.csv", "image,question,answers\nred.png,a,[b\n", "a.csv:2: a cell that begins with"),
        ("a.json", "{}", "be a list of objects"),
        ("a.json", "{\n}{", "a.json:2: the file must be JSON"),
        ("a.jsonl", "", "at least one question"),
    ],
)
def test_files_that_are_no_tables(folder, name, text, said):
    assert said in said_of(text, name=name)


def test_files_that_are_not_there(folder):
    with pytest.raises(DataError, match="the file of questions must exist; got 'mien.jsonl'"):
        task("mien.jsonl")
    with pytest.raises(UnknownNameError, match=r"FILE\.jsonl"):
        task("mine.xlsx")
    (folder / "a.jsonl").write_bytes(b"\xff")
    with pytest.raises(DataError, match="readable UTF-8"):
        task("a.jsonl")


def test_a_picture_that_cannot_be_decoded_is_named_before_anything_runs(folder):
    Image.effect_noise((64, 64), 90).save("whole.png")
    content = (folder / "whole.png").read_bytes()
    (folder / "half.png").write_bytes(content[: len(content) // 2])
    write(RED, {**RED, "image": "half.png"})
    with pytest.raises(DataError, match=r"mine.jsonl:2: the image must be readable"):
        require_questions([("mine.jsonl", "test", 2)])


def test_a_file_is_read_again_when_it_has_changed(folder):
    before = registry("task").entry(write(RED)).origin
    assert task("mine.jsonl") is task("mine.jsonl")
    after = registry("task").entry(write(RED, {**RED, "answer": "crimson"})).origin
    assert before.version != after.version
    assert len(task("mine.jsonl").samples("test", 9)) == 2
    os.utime("mine.jsonl", ns=(1, 1))
    Image.new("RGB", (8, 8), "green").save("red.png")
    assert registry("task").entry("mine.jsonl").origin.version != after.version
    picture = Image.new("RGB", (256, 256))
    picture.save("big.bmp")
    digest = task(write({**RED, "image": "big.bmp"})).digest
    picture.putpixel((128, 128), (9, 9, 9))  # far from the file's beginning and end
    picture.save("big.bmp")
    os.utime("big.bmp", ns=(2, 2))
    assert task(write({**RED, "image": "big.bmp"})).digest != digest


def test_a_comparison_names_files_beside_it(folder, monkeypatch):
    os.mkdir("deep")
    write({**RED, "image": "../red.png", "group": "warm"}, name="deep/mine.jsonl")
    (folder / "deep" / "c.yaml").write_text(
        "strategies: [none]\n"
        "tasks: [mine.jsonl, {task: mine.jsonl, metric: anls, group: warm, split: test, samples: 1}]"
    )
    first, second = load_compare("deep/c.yaml").tasks
    assert (first.task, second.task) == ("deep/mine.jsonl", "deep/mine.jsonl#warm@anls")
    # Without a number of its own, a file is asked as many as it has.
    assert (first.asked("test", 100), second.asked("calibration", 9)) == (("test", 1), ("test", 1))
    again = load_compare(load_compare("deep/c.yaml").to_dict())
    assert again.hash == load_compare("deep/c.yaml").hash


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{task: where, metric: f1}", "in a file to have a metric; got 'f1'"),
        ("{task: where, group: a}", "in a file to have a group; got 'a'"),
        ("{task: mine.jsonl@f1, metric: anls}", "given once; got 'anls'"),
        ("{task: mine.jsonl, metric: [f1]}", "be text"),
    ],
)
def test_a_metric_where_there_is_none_to_choose(folder, spec, said):
    write(RED)
    with pytest.raises(ConfigError, match=rf"tasks\[0\].*{said}"):
        load_compare(f"tasks: [{spec}]\nstrategies: [none]")


def test_patterns_are_not_trained_on(folder):
    with pytest.raises(UnsupportedError, match="not patterns"):
        task(f"{write({**RED, 'split': 'train'})}@regex").training(0)
    assert task("mine.jsonl").training(3)[0].answer == "red"


@pytest.mark.parametrize("metric", METRICS)
def test_scores_pass_the_checks_of_every_task(folder, metric):
    answers = {"vqa": ["a"] * 4, "choice": ["A"]}.get(metric, ["yes"])
    found = task(f"{write({**RED, 'answer': None, 'answers': answers})}@{metric}")
    (sample,) = questions_of(found, "test", 1)
    assert found.score(sample, answers[0]) == 1.0


def test_videos(folder):
    Image.new("RGB", (8, 8), "red").save("a.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
    os.mkdir("frames")
    for place in range(4):
        Image.new("RGB", (8, 8), (place, 0, 0)).save(f"frames/{place}.png")
    row = {"video": "a.gif", "question": "what ?", "answer": "red"}
    talk = [{"role": "user", "content": [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "what ?"}]}]
    both = {"image": "red.png", "video": "frames", "frames": 2, "messages": talk, "answer": "red"}
    first, second = task(write(row, both)).samples("test", 2)
    assert (first.images, [len(video.frames) for video in first.videos]) == ((), [2])
    assert (len(second.images), [frame.getpixel((0, 0))[0] for frame in second.videos[0].frames]) == (1, [0, 2])
    assert [part["type"] for part in second.messages[0]["content"]] == ["video", "image", "text"]
    before = task("mine.jsonl").digest
    assert task(write(row, {**both, "frames": 3})).digest != before
    write("video,frames,question,answer\nframes,3,what ?,red\n", name="a.csv")
    assert len(task("a.csv").samples("test", 1)[0].videos[0].frames) == 3
    assert "mine.jsonl:2: a video must be in one split" in said_of(row, {**row, "split": "train"})
    still = {"image": "frames/3.png", "question": "what ?", "answer": "red", "split": "calibration"}
    filmed = {**row, "video": "frames"}
    for rows, said in (
        ((filmed, still), "mine.jsonl:2: a picture must be in one split, .*mine.jsonl:1 (test) has the same"),
        ((still, filmed), "2: a video must be .*mine.jsonl:1 (calibration) has the same frame '3.png'"),
    ):
        beginning, _, end = said.partition(".*")
        assert beginning in said_of(*rows)
        assert end in said_of(*rows)
    os.mkdir("other")
    Image.new("RGB", (8, 8)).save("other/3.png")
    assert len(task(write({**row, "video": "other"}, still)).samples("test", 9)) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"video": "b.mp4"}, "the video must be an existing file, or a folder of frames; got 'b.mp4'"),
        ({"video": "empty"}, "the video empty must hold pictures"),
        ({"video": "https://a.b/c.mp4"}, "the video must be a file, because nothing is downloaded"),
        ({"video": 3}, "a video must be a path; got int"),
        ({"video": "red.png", "frames": 0}, "'frames' must be a whole number from 1 to 1024; got 0"),
        ({"video": "red.png", "frames": "many"}, "got 'many'"),
        ({"video": "red.png", "videos": ["red.png"]}, "name its videos once; got both 'video' and 'videos'"),
        ({"video": "red.png", "question": None, "messages": [{"role": "user", "content": "what ?"}]},
         "for each of the 1 in 'video', and no more; got 0"),
    ],
)  # fmt: skip
def test_videos_that_are_none(folder, more, said):
    os.mkdir("empty")
    assert said in said_of({"question": "what ?", "answer": "red", **more})
