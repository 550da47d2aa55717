"""``tokentrim explain``: pictures of why strategies kept what they kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tokentrim.cli import options
from tokentrim.cli.output import console, emit, listed, placement, plain_table, quiet_libraries, started
from tokentrim.cli.run import check_fit, check_structure, loading, refuse_evidence
from tokentrim.errors import ConfigError, UnsupportedError, complaint

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokentrim.config.specs import Structure
    from tokentrim.contracts.tasks import Sample
    from tokentrim.explain import Explanation
    from tokentrim.loading import Loaded


@dataclass(frozen=True)
class PictureQuestion:
    """What is asked, and, where a task knows it, which tokens the answer needs."""

    sample: Sample
    evidence: Callable[[Loaded], Any] | None = None


def explain(
    strategy: Annotated[list[str] | None, options.strategies("st3")] = None,
    image: options.Images = None,
    video: options.Video = None,
    frames: options.Frames = 16,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The question about the image.")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", "-t", help="Instead of an image: a question of a task or file: where, where:3, mine.jsonl:0."
        ),
    ] = None,
    model: options.Model = "testbed",
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("explained"),
    max_new_tokens: options.NewTokens = 64,
    structure: options.Structure = None,
    baseline: Annotated[bool, typer.Option(help="Also ask the unpruned model, to compare answers.")] = True,
    device: options.Device = None,
    dtype: options.DType = None,
    attn_implementation: options.Attention = None,
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw each strategy's scores on the image, what it kept, merged and no longer saw: a picture per stage."""
    from tokentrim.config.specs import strategy_from

    ends = cast("Structure", structure or "keep")
    check_structure(ends)
    place = loading(placement(device, dtype, attn_implementation, device_map))
    specs = [strategy_from(piece) for piece in listed(["st3"] if strategy is None else strategy)]
    if not specs:
        raise ConfigError(complaint("--strategy", "name at least one strategy", strategy, "such as st3,fastv"))
    _require_matplotlib()
    from tokentrim.explain.folder import open_folder, write_folder
    from tokentrim.loading import load_model, on_device
    from tokentrim.progress import progress_on
    from tokentrim.runs.batches import sample_inputs

    quiet_libraries()
    question = _question(image or [], video, frames, prompt, task, model)
    sample = question.sample
    if question.evidence is None:
        for spec in specs:
            refuse_evidence(spec.strategy)
    check_fit(specs, model, len(sample.images) + sum(len(one.frames) for one in sample.videos))
    open_folder(out)
    with progress_on(console(to_stderr=True), "steps") as told:
        told.start(2 + baseline + len(specs))
        loaded = load_model(model, **place)
        told.step("model loaded")
        inputs = on_device(loaded.model, sample_inputs(loaded, [sample]))

        def answered(spec: Any) -> Explanation:
            found = _one(loaded, spec, question, inputs, max_new_tokens, ends)
            told.step(found.strategy)
            return found

        reference = answered(strategy_from("none")).answer if baseline else None
        explanations = [answered(spec) for spec in specs]
        drawn = [one.cells.drawn(sample.images, sample.videos) for one in explanations]
        explanations = [replace(one, cells=cells) for one, (cells, *_) in zip(explanations, drawn, strict=True)]
        files = write_folder(out, explanations, *drawn[0][1:], sample.question, model=model, reference=reference)
        told.step("pictures drawn")
    if as_json:
        emit({"answers": {e.strategy: e.answer for e in explanations}, "files": [str(file) for file in files]})
        return
    table = plain_table("strategy", "stages", "tokens, mean over layers", "answer")
    for one in explanations:
        table.add_row(one.strategy, str(len(one.stages)), f"{one.layer_mean_tokens:.1f} of {one.n_visual}", one.answer)
    console().print(table)
    console().print("\n" + "\n".join(str(file) for file in files), soft_wrap=True)


def _require_matplotlib() -> None:
    """Raise UnsupportedError unless the library that draws is there."""
    try:
        import matplotlib as _  # noqa: F401
    except ImportError as cause:
        raise UnsupportedError(
            complaint("tokentrim explain", "find matplotlib", None, "pip install 'tokentrim-vlm[report]'")
        ) from cause


def _question(
    image: list[Path], video: Path | None, frames: int, prompt: str | None, task: str | None, model: str
) -> PictureQuestion:
    """The question that the options mean.

    Raises:
        ConfigError: when they name not exactly one of image, video and task.
        DataError, UnknownNameError: when the image, video or task is not there.
    """
    from tokentrim.contracts.tasks import Sample
    from tokentrim.loading import load_image, load_video
    from tokentrim.testbed import whole_question

    if [bool(image), video is not None, task is not None].count(True) != 1:
        raise ConfigError(
            complaint("an explanation", "be given one of --image, --video and --task", hint="such as --task list-all")
        )
    if task is None:
        # The shipped models know a small language of their own.
        asked = prompt or whole_question(model) or "Describe the image."
        videos = () if video is None else (load_video(video, frames),)
        return PictureQuestion(Sample("", tuple(load_image(path) for path in image), asked, "", videos=videos))
    if prompt is not None:
        raise ConfigError(
            complaint("--prompt", "come with --image or --video", hint="the task brings its own question")
        )
    from tokentrim.plugins.loader import registry
    from tokentrim.runs.questions import questions_of

    known = registry("task")
    name, colon, number = (task, "", "0") if known.knows(task) else task.rpartition(":")
    if not colon:
        name, number = task, "0"
    if not number.isdecimal():
        raise ConfigError(complaint("--task", "be a task and perhaps a number from 0", task, "such as list-all:3"))
    found = known.get(name)
    place = int(number)
    samples = questions_of(found, "test", place + 1, fewer=True)
    if len(samples) <= place:
        raise ConfigError(complaint("--task", f"name one of the {len(samples)} questions of {name}", task))
    sample = samples[place]

    def evidence(loaded: Loaded) -> Any:
        from tokentrim.runs.batches import evidence_of, make_batch

        return evidence_of(found, make_batch(loaded, [sample], [0]))

    return PictureQuestion(sample, evidence if sample.evidence else None)


def _one(
    loaded: Loaded, spec: Any, question: PictureQuestion, inputs: dict[str, Any], limit: int, structure: Structure
) -> Explanation:
    """One strategy on the question.

    Raises:
        RunFailed: when the run breaks after it has started.
    """
    from tokentrim.config.specs import resolve
    from tokentrim.contracts.sites import Need
    from tokentrim.explain import explain as explained
    from tokentrim.runs.batches import visual_tokens
    from tokentrim.session import adapter_of

    shape = adapter_of(loaded.model).locate(loaded.model).shape
    n_visual = visual_tokens(loaded, inputs, [question.sample.images if structure == "keep" else []])[0]
    strategy = resolve(spec, shape, n_visual)
    wanted = question.evidence if Need.EVIDENCE in strategy.needed() else None
    with started(f"strategy {strategy.label()!r}"):
        evidence = None if wanted is None else wanted(loaded)
        return explained(
            loaded, strategy, inputs, max_new_tokens=limit, structure=structure, evidence=evidence,
            n_images=None if question.sample.videos else len(question.sample.images),
        )  # fmt: skip
