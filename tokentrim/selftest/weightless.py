"""A model without weights: what its tower makes of pictures, and what that costs, from shapes alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from tokentrim.engine.seams.private import built
from tokentrim.selftest.shrink import shallow_config

_META = "meta"
_TAKES = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class EncoderRun(NamedTuple):
    """What one call of an encoder made.

    Attributes:
        flops: its matrix products and convolutions, 2 FLOPs a multiply-add; attention over full squares.
        lengths: features of each piece that was encoded on its own.
    """

    flops: int
    lengths: tuple[int, ...]


def weightless(model_class: Any, config: Any) -> Any:
    """A model of the sizes of a config, with few decoder layers and no weights: it takes no memory."""
    with torch.device(_META):
        model = built(model_class, shallow_config(config), dtype=torch.float32, attn_implementation="eager")
    return model.requires_grad_(False).eval()


def encoder_arguments(encode: Callable[..., Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a prompt's inputs that its encoder takes."""
    return {name: inputs[name] for name in inspect.signature(encode).parameters if name in inputs}


def counted(encode: Callable[..., Any], arguments: Mapping[str, Any]) -> EncoderRun:
    """Run an encoder of a weightless model, and count.

    Args:
        encode: ``get_image_features`` of a module from :func:`weightless`.
        arguments: what it takes, on the host.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _Shapes():
        features = encode(**arguments, return_dict=True).pooler_output
    return EncoderRun(counter.get_total_flops(), tuple(int(item.shape[:-1].numel()) for item in features))


class _Shapes(TorchDispatchMode):
    """Numbers that come from the inputs alone are computed; what a weight has touched is a shape.

    Towers read sizes and masks from their inputs to say how they go on, which shapes alone would not let them do.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options: dict[str, Any] = dict(kwargs or {})
        if any(isinstance(part, Tensor) and part.is_meta for part in tree_leaves((args, options))):
            if func in _TAKES:
                args = (args[0], _places(args[1]), *args[2:])
            args, options = tree_map(_shape_of, (args, options))
        elif options.get("device") is not None and torch.device(options["device"]).type == _META:
            options["device"] = "cpu"  # made of sizes alone, or moved to where a weight is
        return func(*args, **options)


def _shape_of(part: Any) -> Any:
    return part.to(_META) if isinstance(part, Tensor) else part


def _places(indices: Any) -> list[Any]:
    """Indices of a tensor with the masks among them as places: how many a mask takes is not in its shape."""
    found: list[Any] = []
    for index in indices:
        mask = isinstance(index, Tensor) and index.dtype == torch.bool and not index.is_meta
        found += index.nonzero(as_tuple=True) if mask else (index,)
    return found
