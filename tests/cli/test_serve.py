"""``tokentrim serve``: bad input is named before anything is loaded."""

import socket

import pytest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--strategy", "sst3"), "Did you mean 'st3'?"),
        ((), "be given either --strategy or --config"),
        (("nothing", "--strategy", "st3"), "the model must be a registered name"),
        (("--strategy", "oracle"), "be told which tokens hold the evidence"),
        (("--strategy", "st3", "--budget", "2"), "layer_mean_ratio of --budget must lie in (0, 1]"),
        (
            ("--strategy", "{name: fastv, budget: {flops_ratio: 0.5}}", "--budget", "0.5"),
            "the budget must be given once",
        ),
        (("--strategy", "st3", "--device", "gpu"), "device of a model must be"),
        (("--strategy", "{name: fastv, k: 99}"), "k of strategy"),
    ],
)
def test_bad_input_ends_before_anything_is_loaded(cli, monkeypatch, arguments, said):
    monkeypatch.setattr("tokentrim.loading.load_model", lambda *given: pytest.fail("was loaded"))
    result = cli("serve", *arguments, "--port", "0")
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_port_that_is_taken_is_named(cli, monkeypatch):
    monkeypatch.setattr("tokentrim.loading.load_model", lambda *given: pytest.fail("was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = cli("serve", "testbed-plain", "--strategy", "st3", "--port", taken.getsockname()[1])
    assert result.exit_code == 2
    assert "--host and --port must be a free address of this machine" in result.stderr


@pytest.mark.parametrize("raised", [KeyboardInterrupt, None])  # asyncio takes the first Ctrl-C for itself
def test_it_says_where_it_answers_until_it_is_interrupted(cli, monkeypatch, raised):
    def interrupted(*given, **more):
        if raised is not None:
            raise raised

    monkeypatch.setattr("uvicorn.Server.run", interrupted)
    result = cli("serve", "testbed-plain", "--strategy", "fastv", "--port", "0")
    assert result.exit_code == 0
    assert "testbed-plain under fastv answers at http://127.0.0.1:" in result.stderr
    assert result.stderr.rstrip().endswith("stopped")
