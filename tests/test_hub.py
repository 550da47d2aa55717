"""Models by their id on the hub: from the cache, fetched as far as needed, or refused with what fetches them."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors

from tests.hub_cache import COMMIT, fill
from tokentrim.counting.published import PRESETS, REPOSITORIES
from tokentrim.errors import ConfigError, DataError, TokentrimError, UnknownNameError
from tokentrim.loading import HubModel, describe, hub_model, load_model, resolve_folder, shape_of
from tokentrim.runs.cells import locate
from tokentrim.runs.specs import ModelSpec

ID = "someone/tiny-llava"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nobody may download."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("llava-hf/llava-1.5-7b-hf", HubModel("llava-hf/llava-1.5-7b-hf")),
        ("a/b@v1.0", HubModel("a/b", "v1.0")),
        ("a/b@refs/pr/3", HubModel("a/b", "refs/pr/3")),
        *((text, None) for text in ("llava", "./a/b", "/a/b", "~/a", "a/b/c", "a/b@", "a/..", "a--b/c", "a/b c", "")),
    ],
)
def test_what_names_a_model_of_the_hub(text: str, meant: HubModel | None):
    assert HubModel.spelt(text) == meant
    if meant is not None:
        assert str(meant) == text


def test_names_and_folders_that_are_here_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(resolve_folder("testbed-plain"), tmp_path / ID)
    assert hub_model(ID) is None
    assert shape_of(ID).name == "tiny-llava"
    assert hub_model("testbed") is None
    assert hub_model(Path("no/folder")) is None


@pytest.mark.parametrize("name", [ID, f"{ID}@main", f"{ID}@{COMMIT}"])
def test_a_model_in_the_cache_is_loaded_as_its_folder_is(name: str, cache: Path):
    snapshot = fill(cache, ID, "testbed-plain")
    assert resolve_folder(name, weights=True) == snapshot
    model, processor = load_model(name, "cpu")
    expected = load_model("testbed-plain", "cpu").model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert processor.tokenizer.padding_side == "left"
    assert shape_of(name).name == str(HubModel.spelt(name))


@pytest.mark.parametrize(
    ("name", "line"),
    [(ID, f"hf download {ID} where"), (f"{ID}@v2", f"hf download {ID} --revision v2 where")],
)
def test_what_is_not_in_the_cache_is_refused_with_the_line_that_fetches_it(name: str, line: str, cache: Path):
    fill(cache, "someone/else", "testbed-plain")
    for read in (shape_of, load_model):
        with pytest.raises(DataError, match=rf"nothing may be downloaded \(HF_HUB_OFFLINE\)[\s\S]*{line}"):
            read(name)


def test_a_snapshot_without_its_weights_is_described_but_not_loaded(cache: Path):
    snapshot = fill(cache, ID, "testbed-plain", lambda name: not name.endswith(".safetensors"))
    assert describe(ID).folder == snapshot
    with pytest.raises(DataError, match=rf"lacks model\.safetensors; run hf download {ID}"):
        load_model(ID)
    shards = {f"weight{n}": f"model-0000{n}-of-00005.safetensors" for n in range(1, 6)}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(DataError, match=r"lacks model-00001-of-00005.safetensors, .*00003-of-00005.* and more"):
        load_model(ID)


class Hub:
    """Stands for huggingface_hub: notes what is asked of it, and puts it into the cache, as far as it has it."""

    def __init__(self, cache: Path, holds: str = "") -> None:
        self.cache, self.holds, self.asked = cache, holds, list[tuple[str, tuple[str, ...]]]()

    def __call__(self, repo_id: str, *, revision: str, allow_patterns: list[str], ignore_patterns: str) -> str:
        assert ignore_patterns == "*/*"
        self.asked.append((revision, tuple(allow_patterns)))

        def wanted(name: str) -> bool:
            return any(Path(name).match(pattern) for pattern in allow_patterns) and name != self.holds

        return str(fill(self.cache, repo_id, "testbed-plain", wanted))


def test_only_what_a_command_reads_is_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch):
    hub = Hub(cache)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    snapshot = describe(f"{ID}@v1").folder
    assert not list(snapshot.glob("*.safetensors"))
    shape_of(f"{ID}@v1")
    assert hub.asked == [("v1", ("*.json", "*.jinja", "*.txt", "*.model"))]
    load_model(f"{ID}@v1", "cpu")
    # Of the commit that the description came from, even if the tag moves meanwhile.
    assert hub.asked[1:] == [(COMMIT, ("model*.safetensors",))]
    load_model(f"{ID}@v1", "cpu")
    assert len(hub.asked) == 2


def test_a_repository_without_weights_that_are_read_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch):
    hub = Hub(cache, holds="model.safetensors")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(DataError, match=r"its repository lacks it\. .* lacks model\.safetensors"):
        load_model(ID, "cpu")
    assert [patterns for _, patterns in hub.asked[1:]] == [("model*.safetensors",), ("pytorch_model*.bin",)]


@pytest.mark.parametrize(
    ("raised", "ours", "message"),
    [
        (errors.GatedRepoError, DataError, rf"open to you. Accept its terms on its page, https://huggingface.co/{ID}"),
        (errors.RepositoryNotFoundError, UnknownNameError, "a repository of the hub that you may read; got"),
        (errors.RevisionNotFoundError, UnknownNameError, "a branch, a tag or a commit of it; got 'v1'"),
        (errors.LocalEntryNotFoundError, DataError, "the hub could not be reached"),
        (OSError, DataError, rf"must download. OSError: .*; try hf download {ID} --revision v1"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(
    raised: type[Exception],
    ours: type[TokentrimError],
    message: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def refuse(*_: object, **__: object) -> str:
        raise raised.__new__(raised, "no")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ours, match=message):
        load_model(f"{ID}@v1")


def test_every_preset_says_which_repository_it_is_of():
    assert REPOSITORIES.keys() == PRESETS.keys()
    for name, repository in REPOSITORIES.items():
        assert HubModel.spelt(repository) is not None
        with pytest.raises(UnknownNameError, match=rf"its id on the hub is {repository}\."):
            load_model(name)


def test_a_comparison_stays_at_the_commit_that_it_was_planned_with(cache: Path):
    fill(cache, ID, "testbed-plain")
    target = locate(ModelSpec(model=ID, device="cpu"))
    assert (target.name, target.fingerprint, str(target.hub)) == (ID, COMMIT[:16], f"{ID}@{COMMIT}")
    assert locate(ModelSpec(model=str(target.hub))).fingerprint == target.fingerprint
    assert target.load().model.device.type == "cpu"


# ---------------------------------------------------------------------- how models are loaded


def test_options_of_loading_are_handed_on():
    model = load_model("testbed-plain", dtype="bfloat16", attn_implementation="eager", device_map={"": "cpu"}).model
    assert model.dtype is torch.bfloat16
    assert model.config.get_text_config()._attn_implementation == "eager"
    with pytest.raises(ConfigError, match="device_map must stand alone"):
        load_model("testbed-plain", "cpu", device_map="auto")
    with pytest.raises(ConfigError, match="no-such-kernel"):
        load_model("testbed-plain", attn_implementation="no-such-kernel")


def test_quantised_weights_are_refused_with_all_that_transformers_says(tmp_path: Path):
    pytest.importorskip("transformers")
    folder = tmp_path / "quantised"
    shutil.copytree(resolve_folder("testbed-plain"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "hqq"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TokentrimError, match=r"(?i)hqq"):
        load_model(folder)
