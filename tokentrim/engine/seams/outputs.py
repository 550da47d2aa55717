"""What a forward of the language model returns, as an object or as a tuple: states and attention of every layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Change = Callable[[int, Tensor], Tensor]
"""What takes the place of a layer's tensor, by the layer's number; -1 stands for the input of the first."""


def asked_for(name: str, arguments: Mapping[str, Any], config: Any) -> bool:
    """Whether a call wants ``output_<name>``, by its arguments or by the config of its model."""
    return bool(arguments.get(f"output_{name}", getattr(config, f"output_{name}", False)))


def changed(output: Any, n_layers: int, *, states: Change, maps: Change) -> Any:
    """``output`` with hidden states [B, T, D] through ``states``, and attention weights [B, H, T, K] through ``maps``.

    The last hidden state is that of the last layer; where it stands in ``hidden_states`` too, it stays one object.
    """
    is_tuple = isinstance(output, tuple)
    last = output[0] if is_tuple else output.last_hidden_state
    new_last = states(n_layers - 1, last)

    def layers(part: tuple[Any, ...], change: Change) -> tuple[Any, ...]:
        def one(layer: int, tensor: Any) -> Any:
            if not isinstance(tensor, Tensor):
                return tensor  # a layer that was not asked for
            return new_last if tensor is last else change(layer, tensor)

        return tuple(one(layer, tensor) for layer, tensor in enumerate(part, start=n_layers - len(part)))

    def unnamed(part: Any) -> Any:
        if not isinstance(part, tuple):
            return part
        return layers(part, states if any(isinstance(one, Tensor) and one.dim() == 3 for one in part) else maps)

    if is_tuple:
        return (new_last, *map(unnamed, output[1:]))
    output.last_hidden_state = new_last
    for name, change in (("hidden_states", states), ("attentions", maps)):
        if getattr(output, name, None):
            setattr(output, name, layers(getattr(output, name), change))
    return output
