"""Code in the documentation runs: every Python block and every command, but for those that say here why not."""

import json
import re
import shlex
from pathlib import Path
from shutil import copyfile
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from tokentrim.cli import app
from tokentrim.plugins.loader import registry
from tokentrim.testbed import MODELS, model_folder

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# Pages of the example plugin speak of a package that is not installed here; its own suite runs what they say.
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(path for path in sorted(DOCS.rglob("*.md")) if "examples" not in path.parts),
]

# Where a Python block of a page begins with this, it is not run.
BLOCKS_NOT_RUN = {
    ("docs/calibrate.md", "from tokentrim.calibrate import PSigmoid"): "minutes; tests/calibrate runs it smaller",
    ("docs/train.md", "from tokentrim.train import run"): "minutes; tests/train runs it smaller",
    ("docs/lmms-eval.md", "from lm_eval import"): "needs lm-eval; tests/harness/test_lm_eval.py runs it there",
    ("docs/lmms-eval.md", "from lmms_eval.evaluator import"): "needs lmms-eval and data",
    (
        "docs/speed.md",
        'with tokentrim.trim(model, "st3", compile=True)',
    ): "needs a compiler; tests/engine/test_compiled.py runs it",
    (
        "docs/test-a-plugin.md",
        "from tokentrim.testing import",
    ): "of a plugin that is not here; tests/testing runs its like",
    ("docs/test-a-plugin.md", "@parametrize_with_checks("): "of a plugin that is not here; tests/testing runs its like",
    ("docs/quickstart.md", 'folder = "/path/to/llava-1.5-7b-hf"'): "needs weights that do not come along, and a GPU",
    ("docs/serve.md", "import base64"): "asks a server; tests/serve asks one",
    ("docs/vllm.md", "import base64"): "asks a server; tests/serve/vllm asks one where vLLM is",
}
# Where a command begins with this, it is not run.
COMMANDS_NOT_RUN = {
    "make ": "sets up an environment of its own",
    "pip ": "installs",
    "python -c": "writes a model that vLLM loads; tests/serve/vllm does it where vLLM is",
    "python -m venv": "makes an environment",
    "python -m pip": "installs",
    ".venv-lmms/bin/pip": "installs",
    "python -m pytest": "the suite itself",
    "python -m lmms_eval": "needs lmms-eval, data and weights",
    "python -m tokentrim.testbed": "minutes; tests/testbed runs its parts",
    "python -m tests.": "needs results that take an hour",
    "python -m tokentrim.bench": "minutes; tests/bench runs it smaller",
    "pytest": "the suite of a package that the page makes",
    "python -m tests.costs": "reads what a comparison of minutes writes",
    "python tests/": "needs another checkout, or minutes",
    "python run.py": "a command of VLMEvalKit; tests/serve asks what it asks",
    "python docs/examples/bench/": "minutes; tests/engine/test_packing.py tests what it times",
    "torchrun": "starts processes",
    "hf download": "needs the network",
    "TASKS=": "part of a shell script that needs lmms-eval",
    "for ": "part of a shell script that needs lmms-eval",
    "done": "part of a shell script that needs lmms-eval",
    "cd ": "a change of folder",
    "git ": "needs a repository",
    "vllm serve": "needs vLLM, in an environment of its own; make test-vllm asks the same",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY=16 vllm serve": "needs vLLM as well",
    "tokentrim demo": "a server, which does not end; tests/serve/demo opens its page",
    "tokentrim serve": "a server, which does not end; tests/serve asks one",
    "tokentrim compare": "minutes; tests/compare runs it smaller",
    "tokentrim report": "needs finished runs; tests/compare/test_report_merge.py runs it",
    "tokentrim calibrate": "minutes; tests/calibrate runs it smaller",
    "tokentrim train": "minutes; tests/train runs it smaller",
    "tokentrim bench": "minutes; tests/bench runs it smaller",
    "tokentrim plugins": "what is installed beside it is not ours to judge; tests/plugins/test_loader.py runs it",
    "tokentrim ls --no-plugins": "changes this process for good; tests/plugins/test_loader.py runs it",
    "TOKENTRIM_PLUGINS=": "changes this process for good; tests/plugins/test_loader.py runs it",
}
SHIPPED_WEIGHTS = ROOT / "strategies/tokentrim_strategies/weights/quecc-testbed-1.safetensors"
OWN = tuple(f"{where}llava-1.5-7b-hf{at}" for where in ("/path/to/", "llava-hf/", "") for at in ("", "@main"))


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def shipped_model():
    return next((name for name in reversed(MODELS[:2]) if (model_folder(name) / "model.safetensors").is_file()), None)


@pytest.fixture(scope="module")
def names():
    """What blocks may take for granted: names that the prose around them has introduced."""
    import torch
    from pydantic import Field
    from torch import Tensor, nn

    import tokentrim
    from tokentrim.contracts.trained.trainable import Trainable
    from tokentrim.counting.published import PRESETS
    from tokentrim.loading import load_model, prompt_inputs

    if shipped_model() is None:
        pytest.skip("no trained testbed model in this checkout")
    model, processor = load_model(shipped_model())
    sample = registry("task").get("where").samples("test", 1)[0]
    public = {name: getattr(tokentrim, name) for name in tokentrim.__all__}
    more = {"ClassVar": ClassVar, "Field": Field, "Tensor": Tensor, "nn": nn, "torch": torch, "Trainable": Trainable}
    return public | more | {
        "__name__": "documented",
        "tokentrim": tokentrim,
        "model": model,
        "processor": processor,
        "inputs": prompt_inputs(processor, [sample.question], [sample.images]),
        "shape": PRESETS["llava-1.5-7b"],
        "FastV": registry("strategy").get("fastv"),
    }  # fmt: skip


@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path, "python")], ids=name_of)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of the compiler's own modules
def test_python_blocks_run(path, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = dict(names)
    for code in blocks(path, "python"):
        if any(name_of(path) == page and code.startswith(first) for page, first in BLOCKS_NOT_RUN):
            continue
        code = code.replace('"testbed"', f'"{shipped_model()}"')
        exec(compile(code, name_of(path), "exec", dont_inherit=True), known)


def test_reasons_are_of_blocks_that_exist():
    for page, first in BLOCKS_NOT_RUN:
        assert any(code.startswith(first) for code in blocks(ROOT / page, "python")), (page, first)


def commands():
    """Every command of every page's shell blocks, once."""
    found = {}
    for path in PAGES:
        for block in (*blocks(path, "bash"), *blocks(path, "console"), *blocks(path, "sh")):
            for line in re.sub(r"\\\n\s*", " ", block).split("\n"):
                if line.strip() and not line.strip().startswith("#"):
                    found.setdefault(line.strip().removeprefix("$ "), name_of(path))
    return found


def reason(command):
    return next((why for first, why in COMMANDS_NOT_RUN.items() if command.startswith(first)), None)


RUN = [command for command in commands() if reason(command) is None]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the files that documented commands name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(DOCS)
    sample = registry("task").get("where").samples("test", 1)[0]
    sample.images[0].save(tmp_path / "photo.jpg")
    question = {"image": "photo.jpg", "question": sample.question, "answer": sample.answer}
    (tmp_path / "mine.jsonl").write_text(json.dumps(question), encoding="utf-8")
    (tmp_path / "my.yaml").write_text("strategy: st3\n", encoding="utf-8")
    mine = next(block for block in blocks(DOCS / "quickstart.md", "yaml") if "temporal" in block)
    (tmp_path / "mine.yaml").write_text(mine, encoding="utf-8")
    # Made for the testbed, which is then the model that is asked.
    for made in ("gsearch", "fitprune"):
        copyfile(DOCS / f"examples/schedules/{made}-testbed.yaml", tmp_path / f"{made}.yaml")
    copyfile(SHIPPED_WEIGHTS, tmp_path / "quecc-1.safetensors")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN)
def test_commands_run(command, workplace):
    if shipped_model() is None:
        pytest.skip("no trained testbed model in this checkout")
    program, *arguments = shlex.split(command.split(" > ")[0], comments=True)
    assert program == "tokentrim", f"give a reason in COMMANDS_NOT_RUN for {command!r}"
    # A model and a machine that everybody has, and a short answer.
    small = {own: str(model_folder(shipped_model())) for own in OWN} | {"cuda": "auto", "float16": "auto"}
    arguments = [small.get(argument, argument) for argument in arguments]
    if arguments[0] in ("run", "explain"):
        arguments += ["--max-new-tokens", "2"]
        if "--model" not in arguments and not re.search(r"gsearch|fitprune|quecc", command):
            arguments += ["--model", shipped_model()]
    if "--config" in arguments and arguments[0] == "run":
        arguments = [
            "docs/examples/configs/fastv.yaml" if "llava-1.5" in a or "published" in a else a for a in arguments
        ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, f"{command}\n{done.stderr}"


def test_reasons_are_of_commands_that_exist():
    """A reason that no command needs any more hides nothing, but it misleads; common shell words may wait for use."""
    common = (
        "pip ",
        "pytest",
        "python -m pip",
        "python -m pytest",
        "torchrun",
        "cd ",
        "git ",
        "python -m tokentrim.bench",
    )
    unused = [first for first in COMMANDS_NOT_RUN if not any(c.startswith(first) for c in commands())]
    assert not set(unused) - set(common)
