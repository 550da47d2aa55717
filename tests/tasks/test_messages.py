"""Chat messages: turns and images in their order, and no medium dropped in silence."""

import pytest
from PIL import Image

from tokentrim.errors import DataError, UnsupportedError
from tokentrim.tasks.messages import conversation_of


def image(color, mode="RGB"):
    return Image.new(mode, (4, 4), color)


def user(*content):
    return {"role": "user", "content": list(content)}


def text(words):
    return {"type": "text", "text": words}


def shown(picture):
    return {"type": "image", "url": picture}


def test_images_before_one_text_are_a_plain_prompt():
    found = conversation_of([user(shown(image("red")), shown(image("blue")), text("which ?"))], "task")
    assert found.is_plain
    assert found.text == "which ?"
    assert [picture.getpixel((0, 0)) for picture in found.images] == [(255, 0, 0), (0, 0, 255)]


def test_turns_and_places_of_images_are_kept():
    system = {"role": "system", "content": [text("look")]}
    found = conversation_of([system, user(text("at"), shown(image("red")), text("what ?"))], "task")
    assert not found.is_plain
    assert found.text == "atwhat ?"
    assert [part["type"] for part in found.turns[1]["content"]] == ["text", "image", "text"]


def test_a_picture_is_made_rgb_and_may_be_a_file(tmp_path):
    path = tmp_path / "a.png"
    image(128, "L").save(path)
    found = conversation_of([user(shown(str(path)), shown(image((1, 2, 3, 4), "RGBA")), text(""))], "task")
    assert [picture.mode for picture in found.images] == ["RGB", "RGB"]


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_other_media_are_refused_by_name(kind):
    with pytest.raises(UnsupportedError, match=f"task 'x' must hold text and images only; got '{kind}'"):
        conversation_of([user({"type": kind, "url": "a.mp4"})], "task 'x'")


def test_no_message_and_no_picture_are_errors():
    with pytest.raises(DataError, match="at least one message"):
        conversation_of([], "task")
    with pytest.raises(DataError, match="picture or a file"):
        conversation_of([user(shown(3))], "task")
    with pytest.raises(DataError, match="existing file"):
        conversation_of([user(shown("/no/such.png"))], "task")
