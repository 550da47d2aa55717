"""``tokentrim demo`` before it has a page: what is missing, taken or refused."""

import socket

from tokentrim.serve.demo import page


def test_the_command_says_what_is_missing(cli, monkeypatch):
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    result = cli("demo")
    assert result.exit_code == 2
    assert "tokentrim demo must find gradio; got None. Run pip install 'tokentrim-vlm[demo]'." in result.stderr


def test_an_address_that_is_taken_is_refused_before_a_model_is_loaded(cli, monkeypatch):
    monkeypatch.setattr(page, "find_spec", lambda name: object())
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        result = cli("demo", "no-such-model", "--port", str(holder.getsockname()[1]))
    assert result.exit_code == 2
    assert "the address of tokentrim demo must be free; got '127.0.0.1:" in result.stderr


def test_strategies_that_nobody_can_ask_for_on_a_page_are_refused(cli):
    result = cli("demo", "--strategy", "oracle")
    assert result.exit_code == 2
    assert "evidence" in result.stderr
