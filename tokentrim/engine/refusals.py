"""What a pruned forward cannot do, refused by name before a layer runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokentrim.contracts.adapter import Layout
from tokentrim.contracts.fits import Decision
from tokentrim.contracts.strategy import Temporal
from tokentrim.engine.context import Context
from tokentrim.engine.seams import outputs, positions
from tokentrim.engine.seams.masks import takes_masks
from tokentrim.engine.seams.private import ORIGINAL, device_of, is_compiled
from tokentrim.engine.tokens.cache import TrimLayer, trimmed
from tokentrim.engine.tokens.stream import Stream
from tokentrim.errors import DataError, UnsupportedError, complaint

_IGNORED = -100
"""The label that transformers' losses leave out."""


def copied(what: str) -> UnsupportedError:
    """The error for what must be neither copied nor saved."""
    return UnsupportedError(
        complaint(what, "be neither copied nor saved: it belongs to its context", "a copy",
                  "leave the context, copy or save, and enter again")
    )  # fmt: skip


def of_mask(mask: Any, rows: int, columns: int | None = None) -> None:
    """Refuse an attention mask that does not say which tokens are padding.

    Args:
        mask: as the model was given it.
        rows: of the batch.
        columns: that it must have; None = any number.

    Raises:
        UnsupportedError: for anything but None and a 2-D tensor of this size.
    """
    fits = mask is None or (
        isinstance(mask, Tensor) and mask.dim() == 2 and len(mask) == rows and columns in (None, mask.shape[1])
    )
    if not fits:
        raise UnsupportedError(
            complaint(
                "attention_mask of a trimmed model",
                f"be 2-D [batch, tokens], {rows} x {'tokens so far' if columns is None else columns} here",
                tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__,
                "pass the processor's attention_mask",
            )
        )


def of_prefill(
    context: Context,
    arguments: dict[str, Any],
    labels: Tensor | None,
    stream: Stream,
    decisions: Sequence[Decision],
    *,
    cached: bool,
    generates: bool,
) -> None:
    """Refuse a prompt that would come out wrong; ``cached``: it has a cache; ``generates``: it is one of ``generate``.

    Raises:
        UnsupportedError: for gradient checkpointing that would decide twice, for a temporal strategy without a cache,
            for samples packed into one row, and for a sequence longer than a sliding window.
        DataError: for a row that ends in a token which may be dropped, unless the loss of given labels is all that
            is wanted; for a label that would be compared with the logits of such a token; and for an answer that
            would begin behind padding.
    """
    if checkpoints(context.layout.language_model) and not hooks_stay_outside(context.layout.layers):
        raise UnsupportedError(
            complaint(
                "gradient checkpointing in this release of transformers",
                "be off while a model is pruned: it runs the hooks of a layer twice",
                "on",
                "call model.gradient_checkpointing_disable(), or install a release that checkpoints inside the hooks",
            )
        )
    if arguments.get("use_cache") is False and context.temporal is not None:
        refuse_without_cache(context.temporal)
    dropping = [
        any(not d.part.count_is_static or d.counts[row] < n for d in decisions) for row, n in enumerate(stream.n_visual)
    ]
    of_outputs(context, arguments, dropping=any(dropping))
    if any(dropping) or context.edits_attention:
        _of_packed(context, arguments, cached=cached)
    if generates and stream.ends_padded and (any(dropping) or context.temporal is not None):
        raise DataError(
            complaint(
                "a batch that a pruned model answers",
                "be padded on the left: generate reads every row's last column, and padding is dropped",
                f"padding at the end of rows {list(stream.ends_padded)}",
                "set processor.tokenizer.padding_side = 'left'",
            )
        )
    if labels is not None:
        _of_labels(labels, stream, dropping)
    for row in () if labels is not None else stream.ends_visual:
        # Its hidden state at the end may be dropped, and with it the logits of the first new token.
        if dropping[row]:
            raise DataError(
                complaint(
                    f"the last token of row {row} of a pruned prompt",
                    "be text",
                    "a visual token",
                    "put the question, or the template's closing tokens, after the image; for a loss, pass labels",
                )
            )
    of_window(context, stream.length)


def of_outputs(context: Context, arguments: dict[str, Any], *, dropping: bool = False) -> None:
    """Refuse what a forward is asked to return where there is none; ``dropping``: whether tokens of a prompt may go.

    Raises:
        UnsupportedError: for maps of attention that is edited, and for the routing of tokens that are gone.
    """
    reasons = {
        "attentions": context.edits_attention and "the attention that is edited is computed without a map",
        "router_logits": dropping
        and "experts are chosen for the tokens that stay alone, and a loss would count others",
    }
    for name, reason in reasons.items():
        if reason and outputs.asked_for(name, arguments, context.layout.text_config):
            raise UnsupportedError(
                complaint(f"output_{name} under this strategy", f"be off: {reason}", True, f"drop output_{name}")
            )


_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")
"""Arguments that say where the samples of a row begin."""


def _of_packed(context: Context, arguments: dict[str, Any], *, cached: bool) -> None:
    """Refuse samples that are packed into one row: each has a last token of its own, and may not see its neighbours.

    As transformers does, position ids are only read for them where there is no mask, nor a cache unless under flash
    attention.
    """
    given = next((name for name in _PACKED if arguments.get(name) is not None), None)
    ids, mask = arguments.get("position_ids"), arguments.get("attention_mask")
    ids = None if ids is None else positions.of_layers(ids)
    if given is None and ids is not None and mask is None:
        reads = not cached or context.implementation.startswith("flash")
        given = "position_ids that begin anew" if reads and bool((ids.diff() != 1).any()) else None
    if given is not None:
        raise UnsupportedError(
            complaint(
                "a row of a prompt that is pruned",
                "hold one sample: tokens are ranked by a row's last token, and masks are made for one sequence",
                given,
                "give each sample a row of its own, padded, with an attention_mask",
            )
        )


def _of_labels(labels: Tensor, stream: Stream, dropping: Sequence[bool]) -> None:
    """Refuse labels right behind visual tokens: who predicts them may be gone."""
    behind = (stream.vis_pos + 1).clamp(max=stream.length - 1)
    rows = torch.tensor(dropping, device=behind.device).unsqueeze(1)
    asked = labels.to(behind.device).gather(1, behind) != _IGNORED
    asked = asked & rows & stream.vis_valid & (stream.vis_pos + 1 < stream.length)
    if bool(asked.any()):
        row = int(asked.any(1).to(torch.uint8).argmax())
        raise DataError(
            complaint(
                f"labels of row {row} of a pruned prompt",
                f"be {_IGNORED} right behind visual tokens, whose logits would have to predict them and may be gone",
                "a label there",
                f"set the labels of the prompt to {_IGNORED}, and keep those of the answer",
            )
        )


def of_window(context: Context, length: int) -> None:
    """Refuse a sequence that does not fit into a sliding window, where it is not known whom a token then sees.

    Raises:
        UnsupportedError: for an adapter that says nothing of windows; else where the kernel measures them by what is
            left, where positions are renumbered, and where attention is edited.
    """
    window = context.window
    reasons = {
        "": not context.layout.windows,
        " (flash kernels measure it by the tokens that are left)": not takes_masks(context.implementation),
        " (renumbered positions leave open what it is measured by)": context.renumbers,
        " (neighbourhoods of edited attention know no window)": context.edits_attention,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if window is not None and length > window and reason is not None:
        raise UnsupportedError(
            complaint(
                "a sequence under sliding-window attention",
                f"be at most the window, {window} tokens long{reason}",
                length,
                "shorten the prompt or the answer, or use a model without a sliding window",
            )
        )


def of_continued(past: Any, is_active: Callable[[], bool], *, pictures: bool) -> list[TrimLayer]:
    """The layers of a cache that is continued; ``is_active``: of the context that continues it.

    Raises:
        UnsupportedError: when no prompt of this context filled it, the context is closed, or new pictures come.
    """
    if pictures:
        refuse_new_pictures()
    if not trimmed(past):
        raise UnsupportedError(
            complaint(
                "a continued KV cache",
                "have been filled inside this context, by text alone or by a prompt with its images",
                type(past).__name__,
                "start the prompt again inside 'with trim(model, ...)'",
            )
        )
    layers: list[TrimLayer] = past.layers
    layers[0].prompt.require_whole()
    if layers[0].prompt.is_active is not is_active:
        raise UnsupportedError(
            complaint(
                "a continued KV cache",
                "have been filled inside this context",
                "one that another model's context filled",
                "continue it on that model, or start the prompt again on this one",
            )
        )
    return layers


def of_model(host: nn.Module, layout: Layout, *, compiles: bool) -> None:
    """Refuse a model that cannot be pruned as it is.

    Args:
        host: the model.
        layout: its located modules.
        compiles: whether decode steps are to run compiled.

    Raises:
        UnsupportedError: when it runs compiled, or when compiled steps are wanted of layers on several devices.
    """
    for module in (host, layout.entry, layout.language_model, *layout.layers, *layout.attentions):
        if is_compiled(module):  # its code runs past the hooks
            refuse_compiled(type(module).__name__)
    devices = sorted({str(device_of(layer)) for layer in layout.layers}) if compiles else []
    if len(devices) > 1:
        raise UnsupportedError(
            complaint(
                "the decoder layers of a model whose decode steps run compiled",
                "run on one device: a step is one graph, over buffers whose places it keeps in one tensor",
                devices,
                "leave compile=True out, or give device_map one device for the language model",
            )
        )


def refuse_new_pictures() -> None:
    """Raise for a cache that is continued with pictures."""
    raise UnsupportedError(
        complaint(
            "a continued prompt",
            "bring text only",
            "new images (or a prompt fed in chunks)",
            "start a new prompt that holds all images and all that was said, without a cache",
        )
    )


def refuse_without_cache(temporal: Temporal) -> None:
    """Raise for a temporal strategy that has nothing to act on."""
    raise UnsupportedError(
        complaint(
            f"temporal strategy {temporal.label()!r}",
            "have a KV cache to act on",
            "use_cache=False",
            "drop use_cache=False, or the temporal part",
        )
    )


def refuse_compiled(what: str) -> None:
    """Raise for a compiled forward: compiled code has fixed lengths, and keeps running without the hooks."""
    raise UnsupportedError(
        complaint(
            "the forward of a pruned model",
            "run as it is, not through torch.compile",
            what,
            f"pass and call the model that was not compiled (a compiled one keeps it as {ORIGINAL})",
        )
    )


def checkpoints(model: Any) -> bool:
    """Whether the next forward of ``model`` drops its activations and runs the layers again for the gradient."""
    return bool(model.training and getattr(model, "gradient_checkpointing", False))


def hooks_stay_outside(layers: Sequence[nn.Module]) -> bool:
    """Whether checkpointing wraps a layer's ``forward`` (newer transformers), and not its call with the hooks."""
    return all(type(layer).__call__ is nn.Module.__call__ for layer in layers)
