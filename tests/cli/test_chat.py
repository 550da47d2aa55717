"""``tokentrim chat``: what each turn leaves of the picture, and what is said when it went for another question."""

import pytest
from typer.testing import CliRunner

from tokentrim.cli import app

PROMPTS = ("--prompt", "list all ?", "--prompt", "color of ring ?")
SMALL = ("--model", "testbed-plain", "--max-new-tokens", "4")


def test_turns_over_one_cache_say_for_which_question_tokens_went(cli, picture):
    data = cli("chat", "--image", picture, *SMALL, "--strategy", "st3", *PROMPTS, "--json").data
    first, second = data["turns"]
    assert [first["question"], second["question"]] == ["list all ?", "color of ring ?"]
    assert first["kept"][1]["count"] == second["kept"][1]["count"] < first["visual_tokens"]
    assert second["kept"][-1]["count"] <= first["kept"][-1]["count"]
    assert second["kept"][-1]["where"] == "seen at the end"  # and not what is there: under st3 it may return
    (note,) = data["notes"]
    assert note.startswith("visual tokens of turn 1 were dropped for turn 1's question")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--strategy", "uniform"), "were dropped whatever the question"),
        (("--strategy", "{name: vta, evict: false, horizon: 2}"), "were left out of sight for turn 1's question"),
        (("--strategy", "none"), None),
        (("--strategy", "st3", "--anew"), None),
    ],
)
def test_what_is_said_of_the_rest(cli, picture, options, said):
    result = cli("chat", "--image", picture, *SMALL, *options, *PROMPTS)
    assert result.exit_code == 0
    assert result.stdout.count("> ") == 2
    assert result.stdout.count("visual tokens: ") == 2
    assert said in result.stdout if said else "note:" not in result.stdout


def test_questions_come_from_lines_up_to_an_empty_one(picture):
    arguments = ["chat", "--image", str(picture), *SMALL, "--strategy", "fastv"]
    result = CliRunner().invoke(app, arguments, input="list all ?\n\ncolor of ring ?\n")
    assert result.exit_code == 0
    assert result.stdout.startswith("> list all ?\n")
    assert result.stdout.count("left of") == 1


def test_bad_input_is_named_before_anything_is_loaded(cli, tmp_path):
    result = cli("chat", "--image", tmp_path / "none.png", "--strategy", "st3", "--prompt", "a")
    assert result.exit_code == 2
    assert "existing file" in result.stderr
