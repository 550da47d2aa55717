"""The reference for any family: the untouched model itself, with a 4-D mask of its own in every layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokentrim.engine.tokens.trace import Trace
from tokentrim.selftest.masked import masked_logits as reference
from tokentrim.session import located, unwrapped


def masked_logits(model: Any, inputs: dict[str, Any], generated: Tensor, trace: Trace, **more: Any) -> Tensor:
    """:func:`tokentrim.selftest.masked.masked_logits` with the layout that the model's own adapter finds."""
    adapter, layout = located(unwrapped(model)[0])
    mutual = adapter.mutual(layout, inputs)
    return reference(model, layout, inputs, generated, trace, mutual=None if mutual is None else mutual[0], **more)
