"""Session: a strategy on a model, and what the caller may say and ask meanwhile."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn

from tokentrim.contracts.adapter import Adapter, Layout
from tokentrim.contracts.sites import Grid, Need
from tokentrim.contracts.strategy import Strategy
from tokentrim.contracts.token_places import Cells
from tokentrim.drawing.notebook import heading, notes, table
from tokentrim.engine import refusals
from tokentrim.engine.ability import Ability
from tokentrim.engine.engine import Engine
from tokentrim.engine.report import Report, Tally, make_report
from tokentrim.engine.seams.private import unwrapped
from tokentrim.engine.tokens.prompt import Prompt
from tokentrim.engine.tokens.shown import kept_html
from tokentrim.engine.tokens.trace import Trace
from tokentrim.errors import DataError, TokentrimError, UnsupportedError, complaint

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
class _Claim:
    """What says that a model carries a session; the model's hooks keep the session, and nothing keeps the model."""

    session: ref[Session]

    @property
    def label(self) -> str:
        """Of the session's strategy."""
        session = self.session()
        return "another" if session is None else session.strategy.label()


_TRIMMED: WeakKeyDictionary[nn.Module, _Claim] = WeakKeyDictionary()
"""Language models that carry a session."""


def session_on(language_model: nn.Module) -> Session | None:
    """The session that a language model carries, if it does."""
    claim = _TRIMMED.get(language_model)
    return None if claim is None else claim.session()


class Session:
    """A strategy on a model, from ``with trim(...)`` to the end of the block (or ``apply`` to ``restore``).

    Attributes:
        model: the caller's model.
        strategy: the strategy object in force, with its budget solved.
        adapter: the model family's adapter.
        layout: where the adapter found things.
    """

    def __init__(
        self,
        model: nn.Module,
        strategy: Strategy,
        *,
        adapter: Adapter,
        layout: Layout,
        guide: Ability | None = None,
        record: bool = True,
        compile: bool = False,
    ) -> None:
        """Prepare a session; :func:`tokentrim.trim` finds, proves and makes what it is handed.

        Args:
            model: the caller's model.
            strategy: with its budget solved.
            adapter: the model family's.
            layout: where the adapter found things.
            guide: answers each prompt first, for a strategy that asks for one.
            record: keep a trace of what was kept where.
            compile: run decode steps compiled where they can.
        """
        self.model, self.strategy, self.adapter, self.layout = model, strategy, adapter, layout
        host, wrapped = unwrapped(model)
        self._engine = Engine(
            host,
            adapter,
            layout,
            strategy,
            on_prompt=self._begin_prompt,
            record=record,
            guide=guide,
            compiled=compile,
        )
        for part in strategy.spatial_parts:
            part.meet(layout.entry, layout.shape)
        if wrapped and self._engine.context.acts:
            refusals.refuse_compiled(type(model).__name__)
        self._tally = Tally(layout.shape)
        self._latest: Prompt | None = None
        self._images: tuple[Prompt | None, tuple[Image.Image, ...]] = None, ()
        self._open: list[Prompt] = []

    # ------------------------------------------------------------------ on and off

    def __enter__(self) -> Session:
        """Install the engine, or nothing of it.

        Raises:
            UnsupportedError: when the model is trimmed already, by whichever thread.
        """
        claim = _Claim(ref(self))
        try:
            holder = _TRIMMED.setdefault(self.layout.language_model, claim)  # one step, for several threads
            if holder is not claim:
                raise UnsupportedError(
                    complaint(
                        "a model",
                        "carry one strategy at a time",
                        holder.label,
                        "leave the context or call restore(model) first; combine strategies by composing them",
                    )
                )
            self._engine.install()
            return self
        except BaseException:
            self._leave(claim)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the engine out; the model is exactly as before.

        Waits for a forward that another thread runs.

        Raises:
            StrategyError: when a forward outside ``generate`` was pruned by scores with NaN among them.
        """
        try:
            self._leave()
        finally:
            self._leave()  # what Ctrl-C kept from being done
        if error is None:
            self._engine.context.doubts.settle()

    def _leave(self, claim: _Claim | None = None) -> None:
        """Undo all of entering, if it is this session (and, where given, this ``claim``) that carries the model."""
        held = _TRIMMED.get(self.layout.language_model)
        if held is not None and held is (claim or held) and held.session() is self:
            try:
                self._engine.remove()
            finally:
                if not self._engine.installed:
                    _TRIMMED.pop(self.layout.language_model, None)

    # ------------------------------------------------------------------ what the caller may say and ask

    def annotate(
        self,
        *,
        evidence: Any = None,
        new_tokens: Sequence[int] | None = None,
        images: Sequence[Image.Image] | None = None,
    ) -> None:
        """Tell the session what only the caller knows.

        Args:
            evidence: for the *next* prompt: relevance of every visual token, one row of N numbers per sample, for
                strategies that read it (``oracle``). Or a function that makes such rows of the prompt's
                :class:`~tokentrim.contracts.sites.Grid`.
            new_tokens: for the *latest* prompt: tokens that each row's answer really has. In a batch, rows that end
                early are decoded on with the others; with this their cache figures count their own steps only.
            images: for the *latest* prompt: the pictures of its first row, which notebooks draw what was kept on.

        Raises:
            DataError: when ``new_tokens`` does not have one entry per row of the latest prompt.
        """
        if evidence is not None:
            self._engine.evidence.given = evidence
        if new_tokens is not None:
            rows = self._latest.start.rows if self._latest else 0
            if len(new_tokens) != rows:
                raise DataError(
                    complaint(
                        "new_tokens",
                        f"have one entry per row of the latest prompt, {rows}",
                        len(new_tokens),
                        "call it after generate, before the next prompt",
                    )
                )
            self._latest.new_lengths = list(new_tokens)  # type: ignore[union-attr]
        if images is not None:
            self._images = self._latest, tuple(images)

    def _repr_html_(self) -> str:
        """In a notebook: what the latest prompt kept, stage by stage, and the report."""
        prompt, images = self._images
        found = [heading(f"{self.strategy.label()} on {type(self.model).__name__}")]
        shown = images if prompt is self._latest else ()
        for part in (
            lambda: kept_html(self.trace, self.placed(len(shown) or None), shown),
            lambda: table((), self.report().lines()),
        ):
            try:
                found.append(part())
            except TokentrimError as cause:  # nothing has run, or no token has a place
                found.append(notes([str(cause)]))
        return "".join(found)

    @property
    def trace(self) -> Trace:
        """The record of the latest prompt.

        Raises:
            DataError: when no prompt has run, or recording is off.
        """
        if self._latest is None or self._latest.trace is None:
            raise DataError(
                complaint(
                    "session.trace",
                    "follow a prompt that was recorded",
                    None,
                    "call generate() first, and do not pass record=False",
                )
            )
        return self._latest.trace

    @property
    def grid(self) -> Grid:
        """Image, frame, plane, row and column of every visual token of the latest prompt.

        Raises:
            DataError: when no prompt with pictures has run.
            UnsupportedError: when its pictures were encoded outside the context, and differ in size.
        """
        if self._latest is None or not any(self._latest.start.n_visual):
            raise DataError(
                complaint("session.grid", "follow a prompt with pictures", None, "call generate() with an image first")
            )
        return self._latest.grid()

    def placed(self, n_images: int | None = None, row: int = 0) -> Cells | str:
        """Where the visual tokens of one row of the latest prompt lie in its pictures, or why nobody knows.

        Args:
            n_images: pictures of the row; None = as many as its tokens say.
            row: of the prompt.

        Raises:
            DataError: when no prompt with pictures has run.
        """
        if Need.GRID in self.layout.unserved:
            return self.layout.unserved[Need.GRID]
        try:
            cells = Cells.of(self.grid, row)
        except UnsupportedError as reason:
            return str(reason)
        pieces = 1 + max((plane.image for plane in cells.planes), default=-1)
        if n_images is not None and pieces > n_images:
            return f"its pictures are encoded in {pieces} pieces, and where these lie is not known"
        return cells

    @property
    def visual(self) -> Tensor:
        """bool [B, T]: which columns of the latest prompt were visual tokens, before anything was pruned.

        Raises:
            DataError: when no prompt has run.
        """
        if self._latest is None:
            raise DataError(complaint("session.visual", "follow a prompt", None, "call generate() first"))
        return self._latest.start.visual_mask()

    def report(self) -> Report:
        """What was kept and spent so far, over all prompts of this session.

        Raises:
            DataError: when no prompt has run: a report of nothing would hide that nothing was pruned.
            StrategyError: when scores of a prompt held NaN.
        """
        self._engine.context.doubts.settle()
        tally = copy.deepcopy(self._tally)
        for prompt in self._open:
            tally.add(prompt)
        if not tally.prompts:
            raise DataError(
                complaint(
                    "session.report()",
                    "follow at least one prompt",
                    0,
                    "call generate() on this very model inside the context",
                )
            )
        context = self._engine.context
        seconds = {name: context.clock.seconds(name) for name in ("selection", "prefill", "vision", "decode")}
        noting = (*context.abilities, *([self._engine.untouched] if self._engine.untouched is not None else []))
        notes = [note for one in noting for note in one.notes()]
        return make_report(self.strategy.label(), tally, seconds, notes)

    def _begin_prompt(self, prompt: Prompt) -> None:
        """Keep a prompt's account open for as long as a cache holds it, or a copy of it."""
        for ended in [one for one in self._open if not one.kin.caches]:
            self._tally.add(ended)
            self._open.remove(ended)
        self._open.append(prompt)
        self._latest = prompt
