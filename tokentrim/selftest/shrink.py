"""A small copy of a configuration: few, narrow layers, a short vocabulary, and everything else as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import torch

from tokentrim.engine.seams.private import built
from tokentrim.errors import UnsupportedError, complaint

HIDDEN: Final = 128
HEADS: Final = 4
HEAD_DIM: Final = 32
TEXT_TOKENS: Final = 256
"""Token ids 3 to 255 are text; what the config names by id stands behind them."""

_TOWER_HIDDEN: Final = 64
_MOST_WEIGHTS: Final = 50_000_000

_LAYER_COUNTS: Final = ("num_hidden_layers", "n_layers", "depth", "num_layers", "encoder_layers", "layers")
_HEADS: Final[tuple[str, ...]] = (
    "num_attention_heads",
    "num_heads",
    "n_heads",
    "attention_heads",
    "encoder_attention_heads",
)
_INNER: Final[tuple[str, ...]] = (
    "intermediate_size",
    "ffn_dim",
    "encoder_ffn_dim",
    "mlp_dim",
    "shared_expert_intermediate_size",
)
_EXPERTS: Final = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 64, "moe_k": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_OWN: Final = ("embed_dim", "width", "hidden_size")
_OUTPUT: Final = ("out_hidden_size", "output_hidden_size", "text_hidden_size")
_WINDOWS: Final = ("sliding_window", "attention_chunk_size", "sliding_window_size", "window_size")


class Size(NamedTuple):
    """How large a small copy is.

    Attributes:
        layers: decoder layers, at most.
        patches: patches along each side of a picture, where pictures are made small; divisible by the factors by
            which towers merge them.
        blocks: blocks of the vision tower, at most (more where features are taken from a deeper one).
    """

    layers: int
    patches: int
    blocks: int


SIZE: Final = Size(layers=4, patches=12, blocks=3)


def small_config(
    config: Any, *, pictures_too: bool = True, heads_too: bool = True, window: int | None = None, size: Size = SIZE
) -> Any:
    """A configuration of the same class that builds a model in a moment.

    Args:
        config: of the whole model.
        pictures_too: also make pictures small; not where that breaks an arithmetic that only the family knows.
        heads_too: also make the text's attention heads narrow; not where its rotary sections are fixed in code.
        window: tokens that the text's sliding windows and chunks see, where it has any; None = as many as before.
        size: how large it is to be.
    """
    text, key = _text_of(config)
    data: dict[str, Any] = copy.deepcopy(config.to_dict())
    for name in ("quantization_config", "dtype", "torch_dtype"):
        data.pop(name, None)
    for name in ("num_hidden_layers", "hidden_size"):
        if not isinstance((data if key is None else data[key]).get(name), int):
            raise UnsupportedError(
                complaint(f"the text config of {config.model_type!r}", f"say its {name}", type(text).__name__,
                          "the self-test shrinks configurations that do")
            )  # fmt: skip
    old_hidden = int(text.hidden_size)
    vision_key = next((name for name in config.sub_configs if name.startswith("vision")), None)
    old_vision = _first(data.get(vision_key) or {}, _OWN) if vision_key else None
    whole = data if key is None else data[key]
    _shrink_text(whole, window, heads_too, size.layers)
    widths = {old_hidden: int(whole["hidden_size"])}
    tile = picture_size(config)
    for name in config.sub_configs:
        part: Any = data.get(name)
        if isinstance(part, dict) and name != key:
            part.pop("dtype", None)
            if name == vision_key:
                _shrink_tower(part, widths, size.patches if pictures_too else None, _depth(data, size.blocks))
            else:
                _shrink_other(part, widths, old_vision)
    if key is not None:
        whole.pop("dtype", None)
        _follow(data, widths, old_vision)
        if "hidden_size" in data:
            data["hidden_size"] = whole["hidden_size"]
    if pictures_too and data.get("mm_tokens_per_image"):
        data["mm_tokens_per_image"] = (size.patches // 4) ** 2
    if tile is not None and vision_key and data.get("image_grid_pinpoints"):
        small = data[vision_key]["image_size"]  # as many tiles as before, small ones
        sides = small if isinstance(small, list) else [small, small]
        data["image_grid_pinpoints"] = [
            [side * now // before for side, now, before in zip(point, sides, tile, strict=True)]
            for point in data["image_grid_pinpoints"]
        ]
    tokens = token_ids(data)
    _rename_tokens(data, {old: TEXT_TOKENS + number for number, old in enumerate(sorted(tokens))})
    for part in (data, data.get(key) if key else None):
        if part is not None and "vocab_size" in part:
            part["vocab_size"] = TEXT_TOKENS + len(tokens) + 16
    return type(config).from_dict(data)


def shallow_config(config: Any, layers: int = SIZE.layers) -> Any:
    """The same configuration with few decoder layers: everything that a picture passes before them is as it was."""
    key = _text_of(config)[1]
    data: dict[str, Any] = copy.deepcopy(config.to_dict())
    data.pop("quantization_config", None)
    part = data if key is None else data[key]
    depth = part.get("num_hidden_layers")
    if isinstance(depth, int) and depth > layers:
        _truncate(part, depth, layers)
    return type(config).from_dict(data)


def _text_of(config: Any) -> tuple[Any, str | None]:
    """A config's text config, and its name there; None where it is the config itself, or lies deeper."""
    text = config.get_text_config()
    return text, next((name for name in config.sub_configs if getattr(config, name, None) is text), None)


def picture_size(config: Any) -> tuple[int, int] | None:
    """(height, width) in pixels that the tower of a config expects, or None where it says nothing."""
    vision = getattr(config, "vision_config", None)
    size: Any = getattr(vision, "image_size", None)
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) and len(size) == 2 else None


def windows_of(text: Any) -> dict[str, int]:
    """Settings of a text config that limit how far attention sees."""
    return {name: value for name in _WINDOWS if isinstance(value := getattr(text, name, None), int)}


def _shrink_text(part: dict[str, Any], window: int | None, heads_too: bool, most: int) -> None:
    layers = int(part["num_hidden_layers"])
    _truncate(part, layers, min(most, layers))
    if window is not None:
        part.update({name: window for name in _WINDOWS if isinstance(part.get(name), int)})
    if part["hidden_size"] <= HIDDEN:
        return
    heads = int(part["num_attention_heads"])
    old_dim = part.get("head_dim") or part["hidden_size"] // heads
    grouped = part.get("num_key_value_heads")
    part["num_attention_heads"] = HEADS
    if grouped:
        part["num_key_value_heads"] = HEADS if grouped >= heads else max(1, HEADS // 2)
    part["hidden_size"] = HIDDEN
    _cap(part, dict.fromkeys(_INNER, 2 * HIDDEN) | _EXPERTS)
    if not heads_too:
        part["hidden_size"] = HEADS * old_dim  # where the code divides it by the heads
        return
    if "head_dim" in part:
        part["head_dim"] = HEAD_DIM
    for name in ("rope_parameters", "rope_scaling"):
        _scale_sections(part.get(name), old_dim)


def _shrink_tower(part: dict[str, Any], widths: dict[int, int], patches: int | None, depth: int) -> None:
    layers = _first(part, _LAYER_COUNTS) or 0
    if layers > depth:
        _truncate(part, layers, depth)
        for name, value in part.items():
            if isinstance(value, list) and "_ind" in f"_{name}" and all(isinstance(n, int) for n in value):
                part[name] = list(range(min(len(value), depth)))
    text_hidden = next(iter(widths.values()))
    width = _first(part, _OWN)
    if width is not None and width > _TOWER_HIDDEN:
        own = [name for name in _OWN if isinstance(part.get(name), int)]
        part[own[0]] = _TOWER_HIDDEN
        for name in own[1:]:  # a tower that names its own width otherwise calls that of its output hidden_size
            part[name] = text_hidden
        _cap(part, {**dict.fromkeys(_INNER, 2 * _TOWER_HIDDEN), **dict.fromkeys(_HEADS, HEADS)})
        _cap(part, {"num_key_value_heads": HEADS, "head_dim": _TOWER_HIDDEN // HEADS})
        _follow(part, widths, None)
    for name in _OUTPUT:
        if isinstance(part.get(name), int):
            part[name] = text_hidden
    patch = part.get("patch_size")
    if patches is not None and patch and part.get("image_size"):
        sides = patch if isinstance(patch, list) else [patch, patch]
        size = [int(side) * patches for side in sides]
        part["image_size"] = size if isinstance(part["image_size"], list) else size[0]


def _shrink_other(part: dict[str, Any], widths: dict[int, int], tower_hidden: int | None) -> None:
    """A projector, resampler or another tower: as wide as what it stands between."""
    layers = _first(part, _LAYER_COUNTS) or 0
    if layers > 2:
        _truncate(part, layers, 2)
    before = part.get("hidden_size")
    _follow(part, widths, tower_hidden)
    if part.get("hidden_size") != before:
        _cap(part, dict.fromkeys(_HEADS, HEADS))
    _cap(part, dict.fromkeys(_INNER, 2 * HIDDEN))


def _follow(part: dict[str, Any], widths: dict[int, int], tower_hidden: int | None) -> None:
    """Widths that were those of the decoder, or of the tower, still are."""
    known = dict(widths)
    if tower_hidden is not None and tower_hidden > _TOWER_HIDDEN:
        known.setdefault(tower_hidden, _TOWER_HIDDEN)
    for name, value in part.items():
        wide = name.endswith(("hidden_size", "_dim", "_width", "output_size"))
        if wide and isinstance(value, int) and value in known and name not in ("embed_dim", "head_dim"):
            part[name] = known[value]


def _truncate(part: dict[str, Any], layers: int, to: int) -> None:
    """``to`` layers, and of every list with one entry per layer so many, all kinds of layers among them."""
    for name, value in part.items():
        if name in _LAYER_COUNTS and value == layers:
            part[name] = to
        elif isinstance(value, list) and len(value) == layers:
            short = value[:to]
            missing = [kind for kind in dict.fromkeys(map(str, value)) if kind not in map(str, short)]
            for place, kind in enumerate(missing[: to - 1], start=1):
                short[-place] = next(entry for entry in value if str(entry) == kind)
            part[name] = short
        elif isinstance(value, dict) and value and all(isinstance(layer, int) for layer in value):
            own: list[Any] = []
            for entry in value.values():
                own += [] if entry in own else [entry]
            part[name] = {to - place: entry for place, entry in enumerate(own[: to - 1], start=1)}


def _cap(part: dict[str, Any], limits: dict[str, int]) -> None:
    for name, limit in limits.items():
        if isinstance(part.get(name), int) and part[name] > limit:
            part[name] = limit


def _scale_sections(rope: Any, old_dim: int) -> None:
    """M-RoPE's sections share the narrower head in the old proportion."""
    if isinstance(rope, dict):
        sections = rope.get("mrope_section")
        if isinstance(sections, list) and sections:
            total = sum(sections) * HEAD_DIM // old_dim
            scaled = [int(n) * HEAD_DIM // old_dim for n in sections]
            scaled[0] += total - sum(scaled)
            rope["mrope_section"] = scaled
        for inner in rope.values():
            _scale_sections(inner, old_dim)


def _first(part: dict[str, Any], names: Iterable[str]) -> int | None:
    return next((part[name] for name in names if isinstance(part.get(name), int)), None)


def _depth(data: dict[str, Any], blocks: int) -> int:
    """Tower blocks: few, but as many as the layers that features are taken from."""
    wanted: Any = data.get("vision_feature_layer", data.get("vision_feature_layers"))
    picked = wanted if isinstance(wanted, list) else [wanted] if isinstance(wanted, int) else []
    return max([blocks, *(abs(int(layer)) + 1 for layer in picked)])


def _is_token(name: Any, value: Any) -> bool:
    return (
        isinstance(name, str)
        and name.endswith(("_token_id", "_token_index", "_token_ids"))
        and isinstance(value, int | list)
    )


def token_ids(data: dict[str, Any]) -> set[int]:
    """All ids of tokens that a config names."""
    found: set[int] = set()
    for name, value in data.items():
        if isinstance(value, dict):
            found |= token_ids(value)
        elif _is_token(name, value):
            found |= {n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int) and n >= 0}
    return found


def _rename_tokens(data: dict[str, Any], names: dict[int, int]) -> None:
    for name, value in data.items():
        if isinstance(value, dict):
            _rename_tokens(value, names)
        elif _is_token(name, value):
            data[name] = [names.get(n, n) for n in value] if isinstance(value, list) else names.get(value, value)


def build(model_class: Any, config: Any, attention: str | None) -> Any:
    """A model with random weights in float32 on the host; torch's own generator is left as it was.

    Norms and biases are perturbed too: weights that start as ones and zeros would hide a module that is skipped.

    Raises:
        UnsupportedError: when it is not small after all.
    """
    key = _text_of(config)[1]  # a tower may not have what the decoder uses
    chosen = {} if attention is None else {"attn_implementation": {key: attention} if key else attention}
    with torch.device("meta"):
        planned = built(model_class, copy.deepcopy(config), dtype=torch.float32, **chosen)
    size = sum(parameter.numel() for parameter in planned.parameters())
    if size > _MOST_WEIGHTS:
        raise UnsupportedError(
            complaint("the small copy of a model", f"have at most {_MOST_WEIGHTS:,} weights", size,
                      "its configuration has widths that the self-test does not know")
        )  # fmt: skip
    config = copy.deepcopy(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = built(model_class, config, dtype=torch.float32, **chosen).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                fan_in = parameter.numel() / max(parameter.shape[0], 1)
                spread = 1 / math.sqrt(fan_in) if parameter.dim() > 1 else 0.1
                parameter.add_(torch.randn_like(parameter) * spread)
    settings = model.generation_config
    settings.eos_token_id, settings.pad_token_id, settings.do_sample = None, 0, False
    settings.suppress_tokens = sorted(token_ids(config.to_dict())) or None  # an answer holds no placeholder
    return model
