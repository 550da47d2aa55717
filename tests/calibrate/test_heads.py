"""Which heads YOPO silences: ratios against full attention maps, and the file that runs them."""

from __future__ import annotations

import pytest
import torch
import yaml

from tokentrim.calibrate.heads import HeadSearch, head_ratios, inactive_heads, run
from tokentrim.calibrate.options import options_from
from tokentrim.config.specs import strategy_from
from tokentrim.errors import ResultsError
from tokentrim.loading import load_model
from tokentrim.plugins.loader import registry
from tokentrim.runs.batches import make_batches, model_inputs


def test_ratios_are_those_of_full_attention_maps() -> None:
    loaded = load_model("testbed-plain", "cpu")
    (batch,) = make_batches(loaded, registry("task").get("where").samples("calibration", 2), 2)
    found = head_ratios(loaded, batch)
    inputs = model_inputs(loaded, batch)
    real = inputs["attention_mask"].bool()
    image = (inputs["input_ids"] == loaded.model.config.image_token_id) & real
    text = real & ~image
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = loaded.model(**inputs, output_attentions=True).attentions
    for row in range(len(batch.samples)):
        for layer, weights in enumerate(maps):
            received = weights[row][:, real[row]].sum(1)
            expected = received[:, image[row]].sum(1) / received[:, text[row]].sum(1)
            torch.testing.assert_close(found[row, layer], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("keep", "off"), [(1.0, 0), (0.75, 3), (0.5, 6), (0.0, 8)])
def test_the_lowest_heads_go_and_the_first_layer_stays(keep: float, off: int) -> None:
    ratios = torch.tensor([[0.0, 0.1, 0.2, 0.3], [0.9, 0.4, 0.8, 0.5], [0.6, 0.7, 0.05, 1.0]])
    found = inactive_heads(ratios, keep, always=1)
    ranked = sorted((float(ratios[layer, head]), layer, head) for layer in (1, 2) for head in range(4))
    expected = sorted((layer, head) for _, layer, head in ranked[:off])
    assert [(layer, head) for layer, heads in found.items() for head in heads] == expected


def test_a_strategy_file_is_written_and_runs(tmp_path) -> None:
    out = tmp_path / "heads.yaml"
    options = options_from(HeadSearch, {"model": "testbed-plain", "tasks": ["where"], "samples": 2, "keep": 0.5})
    found = run(options, out)
    strategy = strategy_from(out).strategy
    assert strategy.name == "yopo"
    assert strategy.spec()["inactive"] == {str(n): heads for n, heads in found.strategy["inactive"].items()} or (
        yaml.safe_load(out.read_text())["strategy"]["inactive"] == found.strategy["inactive"]
    )
    assert found.kept == 0.5
    assert all(layer >= 2 for layer in found.strategy["inactive"])
    with pytest.raises(ResultsError, match="be a new file"):
        run(options, out)
