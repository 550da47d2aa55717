"""The checks of a self-test, each a function that says what it saw or raises :class:`Failed`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from tokentrim.contracts.compose import compose
from tokentrim.contracts.sites import ATTENTION_ROWS, Need
from tokentrim.contracts.strategy import Strategy
from tokentrim.engine.tokens.trace import Trace
from tokentrim.errors import UnsupportedError
from tokentrim.selftest.masked import masked_logits
from tokentrim.selftest.probes import Fade, Noisy, Scatter, reader
from tokentrim.selftest.subject import STEPS, TOLERANCE, Subject, changes, deviation, generate, state
from tokentrim.selftest.verdict import Failed, Skipped

Check = Callable[[Subject], str]

_SMALL_WINDOW: Final = 8
_LEAST_EFFECT: Final = 1e-3
_PROBED_CELLS: Final = 7


def plain_masks(subject: Subject) -> str:
    """Every decoder layer lets a token see all that came before it, and nothing after it but what the adapter says.

    Told from the masks and rotary tables that the untouched copy hands to its own layers.
    """
    model = subject.build("eager", None)
    layout, made = subject.adapter.locate(model), list[Any]()
    handle = layout.rotary.register_forward_hook(lambda module, args, output: made.append(output))
    seen = _layer_arguments(subject, model)
    handle.remove()
    due = _due(subject)
    later = [n for n, (mask, _) in enumerate(seen) if mask is not None and bool((mask & ~due).any())]
    if later:
        raise Failed(f"bidirectional attention: in decoder layers {later} some tokens attend to tokens behind them")
    whole = torch.ones_like(due).tril()
    fewer = [n for n, (mask, _) in enumerate(seen) if bool((~(whole if mask is None else mask) & due).any())]
    if fewer:
        raise Failed(f"windows or chunks: in decoder layers {fewer} some tokens do not attend to all before them")
    tables = [table for _, table in seen]
    bare = [n for n, table in enumerate(tables) if table is None]
    if bare:
        raise Failed(f"decoder layers {bare} are not handed their position embeddings")
    firsts = {layout.rotary_kind(n): table for n, table in reversed([*enumerate(tables)])}
    others = [n for n, table in enumerate(tables) if _differ(table, firsts[layout.rotary_kind(n)])]
    if others:
        raise Failed(f"position embeddings of more than one kind: decoder layers {others} have others than layer 0")
    tables = [table for table in made if isinstance(table, tuple)]
    if not all(any(not _differ(table, first) for table in tables) for first in firsts.values()):
        raise Failed(f"position embeddings of decoder layers do not come from {type(subject.layout.rotary).__name__}")
    kinds = "one kind" if len(firsts) == 1 else f"{len(firsts)} kinds"
    behind = "" if bool((due == due.tril()).all()) else ", tokens of a picture each other"
    return f"{len(seen)} decoder layers see all before them{behind}, with {kinds} of position embeddings"


def windows(subject: Subject) -> str:
    """What is longer than a window is refused; where the adapter tells which layers have one, dropping is masking."""
    model = subject.build(None, _SMALL_WINDOW)
    if all(mask is None or not bool((~mask & _causal(mask)).any())
           for mask, _ in _layer_arguments(subject, subject.build("eager", _SMALL_WINDOW))):  # fmt: skip
        return "no decoder layer uses a window"
    layout = subject.adapter.locate(model)
    if layout.windows:
        small = replace(subject, model=model, layout=layout)
        return f"in a sequence longer than the window {drop_is_mask(small)}"
    try:
        with subject.trimmed(Scatter(shares={1: 0.5}), model):
            generate(model, subject.prompt(0))
    except UnsupportedError:
        return "a sequence longer than the window is refused"
    raise Failed("a sequence longer than the window that some layers see is not refused")


def reference(subject: Subject) -> str:
    """The reference of the other checks, with nothing masked, is the untouched copy."""
    inputs = subject.prompt(0)
    with torch.no_grad():
        plain = subject.model(**inputs).logits[0]
    visual = subject.visual(inputs)
    n_visual = int(visual.sum())
    everything = Trace((n_visual,), len(subject.layout.layers))
    everything.prefill.append((0, torch.arange(n_visual).unsqueeze(0)))
    found = masked_logits(
        subject.model, subject.layout, inputs, _no_tokens(), everything, visual=visual, mutual=subject.mutual(inputs)
    )
    return _close(found, plain, "logits under masks of our own differ from the untouched model's")


def cached_heads(subject: Subject) -> str:
    """The cache holds what attention reads: a key and a value of every key/value head, for every token."""
    out = subject.model.generate(**subject.prompt(0), max_new_tokens=2, return_dict_in_generate=True)
    shape = subject.layout.shape
    for number, layer in enumerate(out.past_key_values.layers):
        held = tuple(getattr(layer, "keys", _no_tokens()).shape), tuple(getattr(layer, "values", _no_tokens()).shape)
        heads = {(part[1], part[3]) if len(part) == 4 else part for part in held}
        if heads != {(shape.n_kv_heads, shape.head_dim)}:
            raise Failed(
                f"compressed or missing cache entries: layer {number} caches keys and values of shapes {list(held)}, "
                f"not {shape.n_kv_heads} heads of width {shape.head_dim}"
            )
    return f"{shape.n_kv_heads} heads of width {shape.head_dim} in every layer"


def keep_all(subject: Subject) -> str:
    """Keeping everything changes no bit of the logits, inside the context and after it."""
    inputs = subject.prompt(0, 1)
    ids, logits = generate(subject.model, inputs)
    everything = compose((Scatter(shares={0: 1.0, 1: 1.0}),), Fade(rate=0.0))
    with subject.trimmed(everything):
        inside_ids, inside = generate(subject.model, inputs)
    if not (torch.equal(ids, inside_ids) and torch.equal(logits, inside)):
        raise Failed(f"logits differ from the untouched model's by {deviation(inside, logits):.2g}")
    return "logits identical to the last bit"


def drop_is_mask(subject: Subject) -> str:
    """Dropping tokens at any boundary, and entries at any step, is masking them in the untouched copy."""
    layers = len(subject.layout.layers)
    cases = ({0: 0.5}, {1: 0.5}, {0: 0.8, 1: 0.5, layers - 1: 0.2})
    worst = max(_against_reference(subject, compose((Scatter(shares=shares),), Fade(rate=0.2))) for shares in cases)
    return f"logits agree to {worst:.1g}"


def renumbered(subject: Subject) -> str:
    """The same with contiguous positions."""
    strategy = Scatter(shares={1: 0.5}, positions="renumber")
    return f"logits agree to {_against_reference(subject, strategy, renumber=True):.1g}"


def row_is_batch(subject: Subject) -> str:
    """A row of a left-padded batch answers like the row alone."""
    strategy = compose((Scatter(shares={0: 0.9, 1: 0.5, 2: 0.25}),), Fade(rate=0.2))
    with subject.trimmed(strategy) as session:
        ids, logits = generate(subject.model, subject.prompt(0, 1))
        together = session.trace
    worst = 0.0
    for row in (0, 1):
        with subject.trimmed(strategy) as session:
            own_ids, own = generate(subject.model, subject.prompt(row))
            alone = session.trace
        for layer in range(alone.n_layers):
            if not torch.equal(together.kept(layer, row), alone.kept(layer)):
                raise Failed(f"row {row} of a batch keeps other tokens in layer {layer} than the row alone")
        worst = max(worst, deviation(logits[row], own[0]))
        if worst > TOLERANCE or not torch.equal(ids[row], own_ids[0]):
            raise Failed(f"row {row} of a left-padded batch answers otherwise than the row alone, by {worst:.2g}")
    return f"logits agree to {worst:.1g}"


def restored(subject: Subject) -> str:
    """Nothing remains on the copy."""
    inputs = subject.prompt(0)
    before, (_, logits) = state(subject.model), generate(subject.model, inputs)
    with subject.trimmed(compose((Scatter(shares={1: 0.5}),), Fade(rate=0.2))):
        generate(subject.model, inputs)
    if changes(subject.model, before):
        raise Failed("hooks, attributes or settings remain on the model")
    if not torch.equal(generate(subject.model, inputs)[1], logits):
        raise Failed("the model answers otherwise than before")
    return "hooks, attributes, settings and answers are as before"


def attention_rows(subject: Subject) -> str:
    """The attention row that a strategy reads is the one that eager attention computes."""
    model = subject.build("eager", None)
    layout, inputs = subject.adapter.locate(model), subject.prompt(0)
    maps: list[Tensor] = []
    rows: list[Tensor] = []
    handle = layout.attentions[1].register_forward_hook(lambda module, args, output: maps.append(output[1]))
    try:
        look = reader(frozenset({Need.LAST_ROW}), lambda site: rows.append(site.last_row))
        with subject.trimmed(look(shares={2: 0.5}), model), torch.no_grad():
            model(**inputs)
    finally:
        handle.remove()
    if not rows or not maps or not isinstance(maps[0], Tensor):
        raise Failed("its attention weights cannot be had for comparison")
    return _close(
        rows[0][0], maps[0][0, :, -1][:, subject.visual(inputs)], "attention rows differ from eager attention's"
    )


def noise_is_the_samples(subject: Subject) -> str:
    """A sample draws the same noise alone and in a batch."""
    kept: list[Tensor] = []
    for rows, place in (((0, 1), 1), ((1,), 0)):
        with subject.trimmed(Noisy(shares={0: 0.5})) as session:
            generate(subject.model, subject.prompt(*rows), 1)
            kept.append(session.trace.kept(0, place))
    if not torch.equal(*kept):
        raise Failed("a sample draws other noise in a batch than alone")
    return "the same alone and in a batch"


def grid(subject: Subject) -> str:
    """A change in one cell of the picture changes the feature most that the grid puts there."""
    encoding = subject.encoding()
    pixels: Tensor = encoding.arguments["pixel_values"]
    if len(encoding.lengths) != 1:
        raise Failed("its pictures are encoded in pieces whose places are not known")
    places = subject.adapter.places(subject.layout, encoding, 0)
    if int(places.plane.max()) > 0:
        raise Skipped("a tiled picture, which this check does not know how to change cell by cell")
    real = (places.row >= 0).nonzero()[:, 0]
    rows, cols = int(places.rows[real[0]]), int(places.cols[real[0]])
    plain = _features(subject, {**encoding.arguments})
    for number in torch.linspace(0, len(real) - 1, _PROBED_CELLS).long().tolist():
        token = int(real[number])
        row, col = int(places.row[token]), int(places.col[token])
        answers = {
            int((_features(subject, {**encoding.arguments, "pixel_values": changed}) - plain).norm(dim=-1).argmax())
            for changed in _changed(pixels, row, col, rows, cols)
        }
        if token not in answers:
            raise Failed(f"a change at row {row}, column {col} of its {rows} x {cols} grid shows elsewhere")
    return f"{rows} x {cols} tokens in raster order"


CHECKS: Final[tuple[tuple[str, Check, frozenset[Need]], ...]] = (
    ("plain masks", plain_masks, frozenset()),
    ("windows", windows, frozenset()),
    ("reference", reference, frozenset()),
    ("cache", cached_heads, frozenset()),
    ("keep everything", keep_all, frozenset()),
    ("drop is mask", drop_is_mask, frozenset()),
    ("renumbered", renumbered, frozenset()),
    ("row is batch", row_is_batch, frozenset()),
    ("restored", restored, frozenset()),
    ("attention rows", attention_rows, ATTENTION_ROWS | {Need.PROMPT_ROW, Need.PROMPT_WINDOW, Need.PROMPT_COLUMNS}),
    ("noise", noise_is_the_samples, frozenset({Need.RANDOM})),
    ("grid", grid, frozenset({Need.GRID})),
)
"""Name, check, and the needs that a model does without when it fails; where these are none, the model is refused."""


def _against_reference(subject: Subject, strategy: Strategy, *, renumber: bool = False) -> float:
    inputs = subject.prompt(0)
    visual = subject.visual(inputs)
    with subject.trimmed(strategy) as session:
        ids, logits = generate(subject.model, inputs)
        trace = session.trace
    if len(trace.kept(trace.n_layers - 1)) >= int(visual.sum()):
        raise Failed("nothing was dropped")
    expected = masked_logits(
        subject.model,
        subject.layout,
        inputs,
        ids[0][:-1],
        trace,
        visual=visual,
        mutual=subject.mutual(inputs),
        renumber=renumber,
    )[len(visual) - 1 :]
    plain = generate(subject.model, inputs, 1)[1][0]
    if deviation(plain, expected[:1]) < _LEAST_EFFECT:
        raise Failed("the copy's answer does not depend on its picture enough to tell anything")
    worst = deviation(logits[0], expected)
    if worst > TOLERANCE:
        at = [round(deviation(one, other), 6) for one, other in zip(logits[0], expected, strict=True)]
        raise Failed(
            f"dropping is not masking: logits of prompt and {STEPS - 1} steps are off by {at} ({strategy.label()})"
        )
    return worst


def _layer_arguments(subject: Subject, model: Any) -> list[tuple[Tensor | None, Any]]:
    """Per decoder layer of an untouched prompt: bool [T, T], who sees whom (None: no mask), and its rotary table."""
    layout = subject.adapter.locate(model)
    found: list[tuple[Tensor | None, Any]] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        mask: Any = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 4:
            seen = mask[0, 0, :, : mask.shape[2]]
            mask = seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2
        else:
            mask = None
        found.append((mask, kwargs.get("position_embeddings")))

    handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layout.layers]
    try:
        with torch.no_grad():
            model(**subject.prompt(0))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _due(subject: Subject) -> Tensor:
    """bool [T, T]: who is to see whom in an untouched prompt."""
    inputs = subject.prompt(0)
    length, mutual = inputs["input_ids"].shape[1], subject.mutual(inputs)
    due = torch.ones(length, length, dtype=torch.bool).tril()
    return due if mutual is None else due | ((mutual[:, None] == mutual) & (mutual >= 0))


def _causal(mask: Tensor) -> Tensor:
    return torch.ones_like(mask).tril()


def _differ(table: Any, first: Any) -> bool:
    return any(not torch.equal(one, other) for one, other in zip(table, first, strict=True))


def _features(subject: Subject, arguments: dict[str, Any]) -> Tensor:
    """float [placeholders, D]."""
    encode: Any = subject.layout.entry.get_image_features
    with torch.no_grad():
        found = encode(**arguments, return_dict=True).pooler_output
    return torch.cat([item.flatten(0, -2) for item in found])


def _changed(pixels: Tensor, row: int, col: int, rows: int, cols: int) -> list[Tensor]:
    """The picture with cell (row, col) changed; of patches in a list, in either order that towers have them in."""
    found: list[Tensor] = []
    if pixels.dim() >= 4 and pixels.shape[0] == 1:
        high, wide = pixels.shape[-2] / rows, pixels.shape[-1] / cols
        changed = pixels.clone()
        changed[..., round(row * high) : round((row + 1) * high), round(col * wide) : round((col + 1) * wide)] *= -1
        return [changed]
    flat = pixels[0] if pixels.shape[0] == 1 else pixels
    merge = round((len(flat) / (rows * cols)) ** 0.5)
    together = torch.arange(merge * merge) + (row * cols + col) * merge * merge
    down, across = torch.meshgrid(torch.arange(merge) + row * merge, torch.arange(merge) + col * merge, indexing="ij")
    apart = (down * cols * merge + across).flatten()
    for which in (together, apart):
        changed = flat.clone()
        changed[which] *= -1
        found.append(changed.reshape(pixels.shape))
    return found


def _close(found: Tensor, expected: Tensor, complaint: str) -> str:
    worst = deviation(found, expected)
    if worst > TOLERANCE:
        raise Failed(f"{complaint} by {worst:.2g}")
    return f"equal to {worst:.1g}"


def _no_tokens() -> Tensor:
    return torch.zeros(0, dtype=torch.long)
