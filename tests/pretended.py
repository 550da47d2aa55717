"""Devices that are pretended: tensors that say where they are, and refuse to meet what is elsewhere without a ``.to``.

``cpu:1`` and ``cpu:2`` hold what a machine with two GPUs would hold there; plain ``cpu`` is the host. The rules are
CUDA's: the tensors of one operation lie on one device, except that a number without dimensions may come from the host,
and that indices may, too. Values are those of the CPU, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

HOST = torch.device("cpu")
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)


class Placed(Tensor):
    """A tensor that pretends to be on a device of its own."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> Placed:
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=device
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Placed({self.held!r}, {self.device})"

    def tolist(self) -> Any:
        """What torch refuses to read of a subclass."""
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Likewise, where it is asked to bring it to the host."""
        if not force:
            raise TypeError(f"can't convert a tensor on {self.device} to numpy")
        return self.held.numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Placed:
        return Placed(copy.deepcopy(self.held, memo), self.device)

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


class Pretending(TorchDispatchMode):
    """Inside, devices are pretended. ``met``: how many operations ran on each."""

    def __init__(self) -> None:
        super().__init__()
        self.met: dict[torch.device, int] = {}
        self._made = _Making()

    def __enter__(self) -> Pretending:
        # A module that moves takes new parameters: what a parameter is has its device.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self._made.__enter__()
        return super().__enter__()

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)
        self._made.__exit__(*failure)
        torch.__future__.set_overwrite_module_params_on_conversion(False)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {}, self.met)


class _Making(TorchFunctionMode):
    """``torch.tensor`` fills its tensor where no dispatch sees it: it is made on the host, and then moved."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and (device := options.pop("device", None)) is not None:
            given = pytree.tree_map(lambda one: one.held if isinstance(one, Placed) else one, args)
            return function(*given, **options).to(device)
        return function(*args, **options)


def _run(operation: Any, args: Any, kwargs: Any, met: dict[torch.device, int] | None = None) -> Any:
    device = _place(operation, args, kwargs)
    if met is not None:
        met[device] = met.get(device, 0) + 1
    inside: dict[int, Any] = {}

    def bare(one: Any) -> Any:
        if isinstance(one, Placed):
            inside[id(one.held)] = one
            return one.held
        if isinstance(one, Tensor):
            inside[id(one)] = one
        return HOST if isinstance(one, torch.device) else one

    def dressed(one: Any) -> Any:
        if id(one) in inside:  # written in place
            return inside[id(one)]
        return Placed(one, device) if isinstance(one, Tensor) and device != HOST else one

    with torch._C._DisableTorchDispatch():
        output = operation(*pytree.tree_map(bare, args), **pytree.tree_map(bare, kwargs))
    return pytree.tree_map(dressed, output)


def _place(operation: Any, args: Any, kwargs: Any) -> torch.device:
    """Where an operation runs.

    Raises:
        RuntimeError: when its tensors lie on several devices.
    """
    if operation is torch.ops.aten.copy_.default:
        return args[0].device
    if (named := kwargs.get("device")) is not None:
        return named
    given = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    if operation in _INDEXED:
        indices = {id(one) for one in pytree.tree_leaves(args[1]) if isinstance(one, Tensor) and one.device == HOST}
        given = [one for one in given if id(one) not in indices]
    places = {one.device for one in given if one.dim()} or {one.device for one in given}
    loose = {one.device for one in given if not one.dim()} - {HOST}
    if len(places | loose) > 1:
        raise RuntimeError(f"{operation} between {sorted(map(str, places | loose))}")
    return next(iter(places), HOST)


def spread(model: nn.Module, device_map: Mapping[str, str]) -> nn.Module:
    """``model`` with its modules on pretended devices, as ``from_pretrained(device_map=...)`` leaves it."""
    from accelerate.hooks import attach_align_device_hook_on_blocks

    model, main = copy.deepcopy(model), next(iter(device_map.values()))
    for path, module in model.named_modules():
        device = torch.device(_of(path, device_map))
        for name, weight in list(module.named_parameters(recurse=False)):
            module._parameters[name] = nn.Parameter(_on(weight.data, device), requires_grad=False)
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = _on(buffer, device)
    attach_align_device_hook_on_blocks(
        model,
        execution_device={**device_map, "": main},
        offload=dict.fromkeys(device_map, False),
        skip_keys=model._skip_keys_device_placement,
    )
    return model


def _of(path: str, device_map: Mapping[str, str]) -> str:
    """The device of the longest name that ``path`` begins with; the first device where there is none."""
    names = [name for name in device_map if path == name or path.startswith(name + ".")]
    return device_map[max(names, key=len)] if names else next(iter(device_map.values()))


def _on(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor if device == HOST else Placed(tensor, device)
