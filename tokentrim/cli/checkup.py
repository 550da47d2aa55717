"""Does pruning work on a model? Answered on a small random copy of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from tokentrim.errors import AdapterError, TokentrimError
from tokentrim.loading import known_model_types, read_config, require_supported, resolve_folder
from tokentrim.plugins import registry
from tokentrim.session import trim

_LAYERS: Final = 4
_WIDTH: Final = 64
_HEADS: Final = 4
_VOCAB: Final = 256
_NEW_TOKENS: Final = 4


def check_model(name: str) -> dict[str, Any]:
    """Is the family served, are the modules where the adapter looks, is keep-all exact, does dropping drop?

    Raises:
        TokentrimError: when there is no such model, or no adapter serves its family.
    """
    folder = resolve_folder(name)
    model_type = read_config(folder)["model_type"]
    require_supported(model_type, f"model {name!r}")
    adapter = known_model_types()[model_type]
    checks = [_check("family", True, f"{model_type}, served by adapter {adapter}")]
    try:
        model, inputs = small_copy(folder)
    except Exception as cause:  # a configuration that does not shrink says nothing about pruning
        return {"model": name, "checks": [*checks, _check("small copy", None, f"{type(cause).__name__}: {cause}")]}
    for title, look in (("layout", _layout), ("keep everything", _keep_all), ("drop half", _drop_half)):
        try:
            checks.append(_check(title, *look(model, inputs, adapter)))
        except TokentrimError as error:
            checks.append(_check(title, False, str(error)))
    return {"model": name, "checks": checks}


def _check(name: str, ok: bool | None, result: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "result": result}


def small_copy(folder: Path) -> tuple[Any, Mapping[str, Any]]:
    """A model of the folder's family with few, narrow layers and random weights, and a prompt for it."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    text, vision = config.get_text_config(), config.vision_config
    image_token = 5
    _set(text, num_hidden_layers=min(_LAYERS, text.num_hidden_layers), hidden_size=_WIDTH, intermediate_size=2 * _WIDTH,
         num_attention_heads=_HEADS, num_key_value_heads=_HEADS, head_dim=_WIDTH // _HEADS, vocab_size=_VOCAB,
         pad_token_id=0, bos_token_id=1, eos_token_id=None)  # fmt: skip
    _set(vision, num_hidden_layers=min(3, vision.num_hidden_layers), hidden_size=_WIDTH, intermediate_size=2 * _WIDTH,
         num_attention_heads=_HEADS)  # fmt: skip
    for key in ("image_token_id", "image_token_index"):
        if hasattr(config, key):
            setattr(config, key, image_token)
    config.quantization_config = None
    generator = torch.random.get_rng_state()
    auto: Any = AutoModelForImageTextToText
    try:
        torch.manual_seed(0)
        model = auto.from_config(config, dtype=torch.float32).eval()
    finally:
        torch.random.set_rng_state(generator)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    adapter = registry("adapter").get(known_model_types()[config.model_type])()
    n_visual = adapter.shape(config).vision.n_visual
    ids = torch.tensor([[1, 7, *[image_token] * n_visual, 8, 9, 10]])
    side = vision.image_size
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def _set(config: Any, **values: Any) -> None:
    """Set what the configuration has; a family without a key does not get it."""
    for key, value in values.items():
        if hasattr(config, key):
            setattr(config, key, value)


def _layout(model: Any, inputs: Mapping[str, Any], adapter: str) -> tuple[bool, str]:
    """The adapter finds its modules."""
    del inputs
    try:
        layout = registry("adapter").get(adapter)().locate(model)
    except AdapterError as error:
        return False, str(error)
    shape = layout.shape
    return (
        True,
        f"{len(layout.layers)} decoder layers found, {shape.vision.n_visual if shape.vision else 0} visual tokens",
    )


def _keep_all(model: Any, inputs: Mapping[str, Any], adapter: str) -> tuple[bool, str]:
    """Keeping everything changes no bit of the logits."""
    del adapter
    with torch.inference_mode():
        before = model(**inputs).logits
        with trim(model, {"name": "random", "keep_ratio": 1.0}):
            inside = model(**inputs).logits
        after = model(**inputs).logits
    same = torch.equal(before, inside) and torch.equal(before, after)
    return (
        same,
        "logits identical inside the context and after it" if same else "logits differ from the untouched model's",
    )


def _drop_half(model: Any, inputs: Mapping[str, Any], adapter: str) -> tuple[bool, str]:
    """Dropping half of the tokens shows in every layer, and generate still returns the caller's prompt."""
    del adapter
    with torch.inference_mode(), trim(model, {"name": "random", "keep_ratio": 0.5}) as session:
        output = model.generate(**inputs, max_new_tokens=_NEW_TOKENS, do_sample=False)
    report, prompt = session.report(), inputs["input_ids"]
    half = int(report.n_visual) // 2
    kept = all(count == half for count in report.tokens_per_layer) and report.pruning_events > 0
    whole = torch.equal(output[:, : prompt.shape[1]], prompt) and output.shape[1] == prompt.shape[1] + _NEW_TOKENS
    return kept and whole, f"{report.layer_mean_tokens:g} of {report.n_visual:g} visual tokens in every layer"
