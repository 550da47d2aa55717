"""``tokentrim run``: one question under one strategy, beside the unpruned model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tokentrim.cli import options
from tokentrim.cli.output import console, emit, placement, plain_table, quiet_libraries, started
from tokentrim.errors import ConfigError, UnsupportedError, complaint

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console

    from tokentrim.config.specs import Structure, TrimConfig
    from tokentrim.contracts.strategy import Strategy
    from tokentrim.engine.report import Report
    from tokentrim.loading import Loaded, Video
    from tokentrim.session import Session


@dataclass(frozen=True)
class RunAnswer:
    """One answer and what it took.

    Attributes:
        text: the decoded answer.
        report: what was kept and spent.
        stages: (first layer, visual tokens kept from there on), and where fewer were seen as the answer grew, (None,
            what the last layer saw at the end).
        session: the closed session, for the model's layout.
    """

    text: str
    report: Report
    stages: list[tuple[int | None, list[int]]]
    session: Session


def run(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The question.")],
    image: options.Images = None,
    video: options.Video = None,
    frames: options.Frames = 16,
    strategy: options.Strategy = None,
    config: options.Config = None,
    model: options.MaybeModel = None,
    max_new_tokens: options.NewTokens = 64,
    overlay: Annotated[Path | None, typer.Option(help="Write a picture of the kept patches to this file.")] = None,
    structure: options.Structure = None,
    baseline: Annotated[bool, typer.Option(help="Also run the unpruned model, to compare with.")] = True,
    device: options.Device = None,
    dtype: options.DType = None,
    attn_implementation: options.Attention = None,
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Answer a question about an image with fewer visual tokens, and show what was kept and what it cost."""
    place = placement(device, dtype, attn_implementation, device_map)
    name, spec, place = chosen(strategy, config, model, place)
    named: str = structure or spec.structure or "keep"
    from tokentrim.config.specs import resolve, strategy_from
    from tokentrim.loading import load_image, load_model, load_video, shape_of, takes_videos
    from tokentrim.runs.batches import visual_tokens

    quiet_libraries()
    check_structure(named)
    if overlay is not None:
        _check_writable(overlay)
    if bool(image) == (video is not None):
        raise ConfigError(complaint("a run", "be given either --image or --video", hint="such as --image photo.jpg"))
    pictures = [load_image(path) for path in image or ()]
    videos = watched = [] if video is None else [load_video(video, frames)]
    refuse_evidence(spec.strategy)
    check_fit([spec], name, len(pictures) + sum(len(one.frames) for one in videos))
    loaded = load_model(name, **place)
    if videos and not takes_videos(loaded.processor):
        pictures, watched = list(videos[0].frames), []
        note = f"note: this model takes no videos: its {len(pictures)} frames were asked about as images"
        console(to_stderr=True).print(note, style="yellow", soft_wrap=True)
    inputs = inputs_of(loaded, prompt, pictures, watched)
    untouched = strategy_from("none").strategy
    if baseline:  # the first prompt pays for what later ones find ready, so it is not the one that is timed
        _answer(loaded, inputs, untouched, 1)
    ends = cast("Structure", named)
    reference = _answer(loaded, inputs, untouched, max_new_tokens, ends) if baseline else None
    structured = pictures if ends == "keep" else []
    n_visual = visual_tokens(loaded, inputs, [structured])[0]
    solved = resolve(spec, shape_of(name), n_visual)
    answer = _answer(loaded, inputs, solved, max_new_tokens, ends)
    if overlay is not None:
        from tokentrim.cli.overlay import write_overlay
        from tokentrim.contracts.token_places import IN_ORDER
        from tokentrim.runs.drawn_on import canvas_of

        canvas = canvas_of(answer.session, [] if videos else pictures, videos)
        said = IN_ORDER if canvas.note else ""
        write_overlay(overlay, canvas.images, answer.stages, canvas.cells, names=canvas.names, note=said)
        if canvas.note:
            console(to_stderr=True).print(f"note: {overlay}: {canvas.note}", style="yellow", soft_wrap=True)
    if as_json:
        emit(_as_dict(answer, reference, name, overlay))
    else:
        _print(console(), answer, reference, overlay)


def chosen(
    strategy: str | None, config: Path | None, model: str | None, place: dict[str, Any]
) -> tuple[str, Any, dict[str, Any]]:
    """(model, strategy, keyword arguments of ``load_model``) that the options mean; they win over the file.

    Raises:
        ConfigError: when not exactly one of --strategy and --config is given, or the model cannot be loaded so.
    """
    if (strategy is None) == (config is None):
        raise ConfigError(
            complaint(
                "a run",
                "be given either --strategy or --config",
                hint="such as --strategy st3; see 'tokentrim ls strategy'",
            )
        )
    from tokentrim.config.specs import load_config, strategy_from

    if strategy is not None:
        return model or "testbed", strategy_from(strategy), loading(place)
    settings = load_config(cast(Path, config))
    return model or settings.model or "testbed", settings.chosen, loading({**_said(settings, place), **place})


def _said(settings: TrimConfig, place: dict[str, Any]) -> dict[str, Any]:
    """How a file says that its model is loaded; a device and a device map stand for each other."""
    said = {key: value for key, value in settings.loading.items() if key in settings.model_fields_set}
    if {"device", "device_map"} & set(place):
        said = {key: value for key, value in said.items() if key not in ("device", "device_map")}
    return said


def loading(place: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``load_model`` for what options or a file say.

    Raises:
        ConfigError: for a word that is not known; suggests the nearest.
    """
    from tokentrim.config.validation import check
    from tokentrim.config.yaml_reader import Where
    from tokentrim.contracts.load_options import LoadOptions
    from tokentrim.loading import require_attention

    found = check(LoadOptions, place, "a model", Where())
    require_attention(found.attn_implementation)
    return found.loading


def refuse_evidence(strategy: Strategy) -> None:
    """Raise UnsupportedError for a strategy that must be told what is relevant: nobody tells it of a user's image."""
    from tokentrim.contracts.sites import Need

    if Need.EVIDENCE in strategy.needed():
        raise UnsupportedError(
            complaint(
                f"strategy {strategy.label()!r}",
                "be told which tokens hold the evidence for the answer",
                hint="only the testbed's tasks know; use it in 'tokentrim compare'",
            )
        )


def check_fit(specs: list[Any], model: str, n_images: int) -> None:
    """Refuse what does not fit the model before its weights are loaded."""
    from tokentrim.config.specs import resolve
    from tokentrim.contracts.fits import prepare
    from tokentrim.counting.forecast import plan
    from tokentrim.loading import shape_of

    shape = shape_of(model)
    if shape.vision is None:
        return
    for spec in specs:
        fitting = resolve(spec, shape, shape.vision.n_visual * n_images)
        plan(fitting, shape, shape.vision.n_visual * n_images)
        prepare(fitting, shape)


def check_structure(structure: str) -> None:
    """Raise ConfigError unless it is a known word."""
    if structure not in ("keep", "prune"):
        raise ConfigError(complaint("--structure", "be one of keep, prune", structure))


def _check_writable(path: Path) -> None:
    """Raise ConfigError when a file cannot be written there, before anything runs."""
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(complaint("--overlay", "be a file in an existing folder", str(path), "make the folder first"))
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ConfigError(complaint("--overlay", "end in .png, .jpg or .webp", path.name))


def inputs_of(loaded: Loaded, prompt: str, pictures: list[Image.Image], videos: list[Video]) -> dict[str, Any]:
    """Model inputs, where and as the model wants them."""
    from tokentrim.loading import conversation_inputs, on_device, single_turn

    turns = single_turn(prompt, len(pictures), len(videos))
    return on_device(loaded.model, conversation_inputs(loaded.processor, [turns], [pictures], videos))


def _answer(
    loaded: Loaded, inputs: dict[str, Any], strategy: Strategy, max_new_tokens: int, structure: Structure = "keep"
) -> RunAnswer:
    """Generate under a strategy.

    Raises:
        RunFailed: when the run breaks after it has started.
    """
    import torch

    from tokentrim.engine.tokens.shown import stages_of
    from tokentrim.session import trim

    with (
        started(f"the run with strategy {strategy.label()!r}"),
        trim(loaded.model, strategy, structure=structure) as session,
        torch.inference_mode(),
    ):
        output = loaded.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new = output[0, inputs["input_ids"].shape[1] :]
    text = loaded.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    return RunAnswer(text, session.report(), stages_of(session.trace), session)


def _as_dict(answer: RunAnswer, reference: RunAnswer | None, model: str, overlay: Path | None) -> dict[str, Any]:
    """The run as plain data."""
    return {
        "model": model,
        "strategy": answer.session.strategy.spec(),
        "answer": answer.text,
        "unpruned_answer": None if reference is None else reference.text,
        "same_answer": None if reference is None else answer.text == reference.text,
        "kept": [
            {"from_layer": layer, "where": "prefill" if layer is not None else "seen at the end", "count": len(kept),
             "indices": kept}
            for layer, kept in answer.stages
        ],
        "report": answer.report.to_dict(),
        "unpruned_report": None if reference is None else reference.report.to_dict(),
        "overlay": None if overlay is None else str(overlay),
    }  # fmt: skip


def _print(out: Console, answer: RunAnswer, reference: RunAnswer | None, overlay: Path | None) -> None:
    """The run for people."""
    out.print(answer.text or "(empty answer)", style="bold", soft_wrap=True)
    if reference is not None:
        same = answer.text == reference.text
        said = "the unpruned model gives the same answer" if same else f"the unpruned model answers: {reference.text}"
        out.print(said, style="dim" if same else "yellow", soft_wrap=True)
    out.print()
    kept = plain_table("from", "visual tokens kept", "share")
    for layer, tokens in answer.stages:
        place = "seen in the last layer, at the end" if layer is None else f"layer {layer}"
        share = f"{len(tokens) / answer.report.n_visual:.1%}" if answer.report.n_visual else "-"
        kept.add_row(place, str(len(tokens)), share)
    out.print(kept)
    out.print()
    out.print(_cost_table(answer.report))
    report = answer.report
    out.print(
        f"one run, on this machine as it is: prefill {1000 * report.prefill_seconds:.0f} ms, decoding "
        f"{1000 * report.decode_seconds:.0f} ms, of both {1000 * report.selection_seconds:.0f} ms selecting; "
        "'tokentrim bench' compares times",
        style="dim",
        soft_wrap=True,
    )
    for note in answer.report.notes:
        out.print(f"note: {note}", style="dim")
    if overlay is not None:
        out.print(f"kept patches: {overlay}", soft_wrap=True)


def _cost_table(report: Report) -> Any:
    """Costs as shares of the unpruned run. Times are none of them: those of two single runs do not compare."""
    table = plain_table("cost, all layers", report.strategy, "unpruned")
    for name, value in (
        ("visual tokens, mean over layers", report.layer_mean_ratio),
        ("prefill FLOPs", report.flops_ratio),
        ("visual KV after prefill", report.kv_peak_ratio),
        ("visual KV, mean over decoding", report.kv_mean_ratio),
        *([("of it seen", report.kv_read_ratio)] if report.kv_read_ratio != report.kv_mean_ratio else []),
        ("visual KV at the end", report.kv_end_ratio),
    ):
        table.add_row(name, f"{value:.1%}", "100.0%")
    return table
