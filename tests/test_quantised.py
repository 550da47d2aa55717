"""Models with quantised weights, where the libraries that read them are installed: pruned, they answer as by masks."""

import warnings

import pytest
import torch
from torch import nn

from tests.engine.cases import deviation, generate
from tests.masked import masked_logits
from tokentrim.loading import load_model, on_device, prompt_inputs, resolve_folder
from tokentrim.session import trim
from tokentrim.testbed.tasks import TASKS

NEW = 4
pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries that are young


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The shipped model with int8 weights, saved and loaded as a user's folder is."""
    pytest.importorskip("accelerate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError)
        from transformers import AutoModelForImageTextToText, TorchAoConfig

        settings = TorchAoConfig(quantization.Int8WeightOnlyConfig())
        source, folder = resolve_folder("testbed-plain"), tmp_path_factory.mktemp("int8")
        model = AutoModelForImageTextToText.from_pretrained(
            source, quantization_config=settings, device_map={"": "cpu"}, dtype=torch.float32
        )
        model.save_pretrained(folder)
        load_model("testbed-plain").processor.save_pretrained(folder)
        return load_model(folder, "cpu")


@pytest.mark.parametrize("spec", ["none", "fastv", {"name": "st3", "budget": {"kv_ratio": 0.4}}, "dart", "fastervlm"])
def test_int8_weights_of_torchao(spec, loaded):
    layer = loaded.model.model.language_model.layers[0].self_attn.q_proj
    assert type(layer.weight) is not nn.Parameter
    asked = TASKS["list-all"].samples("test", 2)
    inputs = prompt_inputs(loaded.processor, [one.question for one in asked], [one.images for one in asked])
    inputs = on_device(loaded.model, inputs)
    with trim(loaded.model, spec) as session:
        tokens, logits = generate(loaded.model, inputs, NEW)
    for row in range(2):
        alone = on_device(
            loaded.model, prompt_inputs(loaded.processor, [asked[row].question], [asked[row].images])
        )  # fmt: skip
        visual = (alone["input_ids"] == loaded.model.config.image_token_id)[0]
        expected = masked_logits(
            loaded.model, alone, tokens[row, :-1], session.trace, visual=visual, sample=row
        )[len(visual) - 1 :]  # fmt: skip
        assert deviation(logits[row], expected) < 1e-4
    if spec != "none":
        assert session.report().layer_mean_ratio < 1
