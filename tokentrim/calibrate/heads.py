"""Which attention heads do without visual keys: how much more they look at the image than at the text (YOPO)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
import yaml
from pydantic import Field
from torch import Tensor

from tokentrim.calibrate.measure import SPLIT
from tokentrim.calibrate.options import CalibrationOptions
from tokentrim.config.specs import strategy_from
from tokentrim.engine.seams import attention, attention_rows
from tokentrim.engine.tokens.stream import Sight, Stream
from tokentrim.errors import ResultsError, complaint
from tokentrim.loading import Loaded
from tokentrim.progress import Progress, Silent
from tokentrim.runs.batches import Batch, model_inputs
from tokentrim.runs.cells import Cell, locate, versions
from tokentrim.runs.files import clear, write_text
from tokentrim.runs.work import work_of
from tokentrim.session import located

RUNS_IT: Final = "yopo"


class HeadSearch(CalibrationOptions):
    """The heads that look at visual keys more than the others do."""

    method: ClassVar[str] = "heads"

    keep: float = Field(default=0.5, ge=0, le=1, description="share of all heads that stay active")
    share: float = Field(
        default=0.4, gt=0, le=1, description="a head counts by what it reaches in this share of the questions"
    )
    always: int = Field(default=2, ge=0, description="lowest layers whose heads all stay active")


@dataclass(frozen=True)
class HeadsFound:
    """A finished calibration.

    Attributes:
        path: the strategy file.
        strategy: what it says.
        ratios: float [L, H], attention to visual keys over that to text keys, as ranked.
        kept: share of the heads that stay active.
    """

    path: Path
    strategy: dict[str, Any]
    ratios: Tensor
    kept: float


def run(
    options: HeadSearch, out: str | Path, *, command: Sequence[str] | None = None, progress: Progress | None = None
) -> HeadsFound:
    """Rank every head on the calibration questions, and write a ``yopo`` strategy that silences the lowest.

    For each question and head: the attention that all rows of the prompt give to visual keys, over what they give to
    text keys. A head's rank is the value that it exceeds in ``share`` of the questions (the released code asks for more
    than 40 of 100), and the ``keep`` highest stay active. The authors set a threshold per model instead; a share of the
    heads is what it amounts to, and moves from model to model.

    Args:
        options: see :class:`HeadSearch`.
        out: the strategy file to write (YAML), a new one.
        command: the command line, for the record.
        progress: told what happens.

    Raises:
        TokentrimError: for bad input, before anything runs.
    """
    path, told = Path(out), progress or Silent()
    if path.exists():
        raise ResultsError(complaint(f"{path}", "be a new file", hint="choose another --out, or remove the file"))
    clear(path.parent)
    target = locate(options.model)
    asked = [(task, task.asked(SPLIT, options.samples)[1]) for task in options.tasks]
    told.start(sum(-(-n // options.batch_size) for _, n in asked))
    loaded = target.load()
    found: list[Tensor] = []
    for task, n in asked:
        untouched = strategy_from("none")
        cell = Cell(target, task, n, SPLIT, "none", untouched, "fixed", 1, options.batch_size)
        for batch in work_of(cell, loaded).batches:
            found.append(head_ratios(loaded, batch))
            told.step(task.task)
    ratios = torch.cat(found).quantile(1 - options.share, dim=0)
    inactive = inactive_heads(ratios, options.keep, options.always)
    strategy = {"name": RUNS_IT, "inactive": inactive}
    kept = 1 - sum(map(len, inactive.values())) / ratios.numel()
    provenance = {
        "command": shlex.join(command) if command else f"tokentrim.calibrate.heads.run(..., {str(out)!r})",
        "model": {"name": target.name, "fingerprint": target.fingerprint},
        "split": SPLIT,
        "options": options.to_dict(),
        "versions": versions(),
        "result": {"questions": sum(len(part) for part in found), "heads_kept": round(kept, 4)},
    }
    body = yaml.safe_dump({"strategy": strategy}, sort_keys=False, default_flow_style=None)
    use = f"tokentrim run --config {path.name} --image photo.jpg --prompt 'What is this?'"
    text = f"# {use}\n# {json.dumps(provenance)}\n{body}"
    write_text(path, text)
    return HeadsFound(path, strategy, ratios, kept)


def inactive_heads(ratios: Tensor, keep: float, always: int) -> dict[int, list[int]]:
    """Layer -> heads to silence, so that of all heads ``keep`` stay active, rounded up.

    Args:
        ratios: float [L, H].
        keep: share of all heads; the lowest layers count as part of it.
        always: lowest layers whose heads all stay active.
    """
    layers, heads = ratios.shape
    off = int((1 - keep) * layers * heads + 1e-9)
    ranked = ratios.clone()
    ranked[:always] = float("inf")
    lowest = torch.argsort(ranked.flatten(), stable=True)[: min(off, max(0, layers - always) * heads)].tolist()
    found: dict[int, list[int]] = {}
    for number in sorted(lowest):
        found.setdefault(number // heads, []).append(number % heads)
    return found


def head_ratios(loaded: Loaded, batch: Batch) -> Tensor:
    """float [B, L, H] on the host: attention that all rows give to visual keys, over what they give to text keys."""
    adapter, layout = located(loaded.model)
    inputs = model_inputs(loaded, batch)
    real = inputs["attention_mask"].bool()
    image = (adapter.modalities(layout, inputs) > 0) & real
    seen: dict[int, Tensor] = {}
    stream = replace(Stream.of_prompt(image, real), mutual=adapter.mutual(layout, inputs))
    sights = [stream.sight(layout.window_of(layer, stream.length)) for layer in range(len(layout.attentions))]
    observers = {
        module: _observer(layer, image, real, sights[layer], seen) for layer, module in enumerate(layout.attentions)
    }
    with attention.observing(observers, layout.text_config), torch.inference_mode():
        loaded.model.generate(**inputs, max_new_tokens=1, do_sample=False)
    return torch.stack([seen[layer] for layer in sorted(seen)], dim=1).cpu()


def _observer(
    layer: int, image: Tensor, real: Tensor, sight: Sight | None, seen: dict[int, Tensor]
) -> attention.Observer:
    """Notes the ratio of every head of a layer, [B, H]."""

    def look(call: attention.AttentionCall) -> attention.Attended:
        given = attention_rows.received(call.query, call.key, call.scaling, real, sight=sight)
        to_image, to_text = ((given * part[:, None]).sum(2) for part in (image, real & ~image))
        seen[layer] = to_image / to_text.clamp(min=1e-9)
        return call.run()

    return look
