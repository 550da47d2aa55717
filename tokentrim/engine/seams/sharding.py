"""Attention heads that several processes share (tensor parallel): every one must decide by all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class SharedHeads:
    """Completes what one process read of its own heads.

    Attributes:
        group: the processes that share the heads; None where there is one alone.
    """

    group: Any = None

    @classmethod
    def of(cls, model: Any) -> SharedHeads:
        """The group of a model that ``from_pretrained(tp_plan=...)`` spread over several processes."""
        mesh, size = getattr(model, "_device_mesh", None), getattr(model, "_tp_size", None) or 1
        if mesh is None or size == 1:
            return cls()
        return cls((mesh["tp"] if "tp" in (mesh.mesh_dim_names or ()) else mesh).get_group())

    @property
    def shared(self) -> bool:
        """Whether this process holds only some of the heads."""
        return self.group is not None

    def whole(self, read: Any) -> Any:
        """``read`` [B, H of this process, ...] with the heads of all, in order; what stands beside it in a tuple stays.

        The same bits in every process, so that all keep the same tokens.
        """
        if self.group is None or read is None:
            return read
        if isinstance(read, tuple):
            return (self.whole(read[0]), *read[1:])
        own: Tensor = read.contiguous()
        parts = [torch.empty_like(own) for _ in range(distributed.get_world_size(self.group))]
        distributed.all_gather(parts, own, group=self.group)
        return torch.cat(parts, dim=1)
