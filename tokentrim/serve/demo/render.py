"""What the page shows of an answer, as HTML; every word from outside is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Final

from tokentrim.counting.units import in_bytes
from tokentrim.drawing.notebook import kept_patches

if TYPE_CHECKING:
    from tokentrim.serve.demo.asking import Beside, Ran

_PLANES: Final = 6  # pictures, tiles and frames that a stage shows
WAITING: Final = '<p class="tt-note">The two answers, what was kept of the picture, and what it saved appear here.</p>'


def head(about: str) -> str:
    """The top of the page."""
    return f'<header class="tt-head"><h1>tokentrim</h1><p class="tt-note">{escape(about)}</p></header>'


def wrong(error: BaseException) -> str:
    """An error in the place of the answers."""
    return f'<div class="tt-wrong" role="alert"><h2>This cannot be answered</h2><p>{escape(str(error))}</p></div>'


def strategies(served: Mapping[str, str], refused: Mapping[str, str]) -> str:
    """What there is, and what is refused here and why."""
    parts = ((f"{len(served)} strategies serve this model", served), (f"{len(refused)} do not, and why", refused))
    return "".join(
        f'<details class="tt-list"><summary>{title}</summary><dl>'
        + "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(said)}</dd></div>" for name, said in lines.items())
        + "</dl></details>"
        for title, lines in parts
        if lines
    )


def beside(found: Beside) -> str:
    """The question, as the fields may say something else by now; both answers, the figures, what every stage kept."""
    same = found.unpruned.answer == found.pruned.answer
    said = ("right", "the same answer") if same else ("other", "another answer")
    return (
        f'<p class="tt-asked">{escape(found.question)}</p>'
        f'<div class="tt-pair">{_card("unpruned", found.unpruned)}{_card(found.pruned.label, found.pruned, said)}</div>'
        f"{_figures(found)}{_kept(found)}"
    )


def _card(title: str, ran: Ran, said: tuple[str, str] | None = None) -> str:
    mark = f' <span class="tt-{said[0]}">{said[1]}</span>' if said else ""
    answer = escape(ran.answer) if ran.answer else '<em class="tt-note">(empty answer)</em>'
    return f'<section class="tt-card"><h2>{escape(title)}{mark}</h2><p class="tt-answer">{answer}</p></section>'


def _figures(found: Beside) -> str:
    """What both spent, and the share of it that is left."""
    plain, pruned = found.unpruned.report, found.pruned.report
    rows: list[tuple[str, ...]] = [
        ("visual tokens per layer", f"{plain.layer_mean_tokens:g}", f"{pruned.layer_mean_tokens:.1f}",
             f"{pruned.layer_mean_ratio:.0%}"),
            ("prefill FLOPs", "", "", f"{pruned.flops_ratio:.0%}")]  # fmt: skip
    for name, key in (("KV after the prompt", "kv_peak_bytes"), ("KV at the end", "kv_end_bytes")):
        whole, left = float(getattr(plain, key)), float(getattr(pruned, key))
        rows.append((name, *in_bytes(whole, left), f"{left / whole:.0%}" if whole else ""))
    for name, key in (("first token", "first_token"), ("each further token", "further_token")):
        whole, left = getattr(found.unpruned, key), getattr(found.pruned, key)
        share = f"{left[0] / whole[0]:.0%}" if whole and left else ""
        rows.append((name, _milliseconds(whole), _milliseconds(left), share))
    lines = "".join(
        f'<tr class="tt-line"><th scope="row" class="tt-name">{name}</th>'
        + "".join(f"<td>{cell or '–'}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    return (
        '<div class="tt-scroll" tabindex="0" role="region" aria-label="what both spent">'
        '<table class="tt-table"><thead><tr class="tt-top"><td></td>'
        '<th scope="col">unpruned</th><th scope="col">pruned</th><th scope="col">of unpruned</th></tr></thead>'
        f'<tbody>{lines}</tbody></table></div><p class="tt-note">{_how_timed(found)}</p>'
    )


def _milliseconds(seconds: tuple[float, ...]) -> str:
    """Median, and from the least to the most where they differ."""
    if not seconds:
        return ""
    middle, least, most = (f"{1000 * one:.3g}" if one < 1 else f"{1000 * one:.0f}" for one in seconds)
    return f"{middle} ms" + (f" <small>{least}–{most}</small>" if least != most else "")


def _how_timed(found: Beside) -> str:
    if not found.repeats:
        return "Times: not taken."
    if not found.timed:
        return "Times: being taken …"
    runs = "one run of each" if found.repeats == 1 else f"median and range of {found.repeats} runs of each, in turn"
    return (
        f"Times: {runs}, after a first one that is not counted, on this machine as it is; "
        "<code>tokentrim bench</code> compares times."
    )


def _kept(found: Beside) -> str:
    """A picture for each stage, its dropped patches grey."""
    ran, total = found.pruned, int(found.pruned.report.n_visual)
    planes = list(ran.cells.planes)
    figures: list[str] = []
    for first, kept in ran.stages:
        where = "last layer, at the end" if first is None else f"from layer {first}"
        title = f'{where} <span class="tt-note">{len(kept)} of {total}</span>'
        pictures = "".join(
            f'<img alt="what is kept {where}" src="'
            + kept_patches(found.picture, ran.cells.inside(number, kept), plane.rows, plane.cols)
            + '">'
            for number, plane in enumerate(planes[:_PLANES])
        )
        figures.append(f"<figure><figcaption>{title}</figcaption>{pictures}</figure>")
    notes = [*ran.report.notes]
    if len(planes) > _PLANES:
        notes.append(f"{_PLANES} of {len(planes)} pictures and tiles are drawn")
    return (
        f'<h2 class="tt-title">What was kept</h2><div class="tt-kept">{"".join(figures)}</div>'
        + "".join(f'<p class="tt-note">{escape(note)}</p>' for note in notes)
    )  # fmt: skip
