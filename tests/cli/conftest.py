"""The command line in this process, and a picture to ask about."""

import json

import pytest
from typer.testing import CliRunner

from tokentrim.cli import app
from tokentrim.plugins.loader import registry

RUNNER = CliRunner()


@pytest.fixture
def cli():
    """Call the command line; returns its result, whose ``data`` is the JSON on stdout where there is any."""

    def call(*arguments):
        result = RUNNER.invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        result.data = json.loads(result.stdout) if "--json" in arguments and result.stdout else None
        return result

    return call


@pytest.fixture(scope="session")
def sample():
    return registry("task").get("where").samples("test", 1)[0]


@pytest.fixture(scope="session")
def picture(sample, tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    sample.images[0].save(path)
    return path
