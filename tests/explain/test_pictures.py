"""Pictures of explanations: true colours, every plane, files that fit together."""

import json

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from tests.cli.conftest import RUNNER
from tokentrim.cli import app
from tokentrim.config.specs import strategy_from
from tokentrim.contracts.token_places import Cells, Plane
from tokentrim.drawing.style import figure_style
from tokentrim.explain import explain
from tokentrim.explain.panels import MAP, Panel, scale
from tokentrim.loading import load_model, prompt_inputs
from tokentrim.testbed.tasks import TASKS

CELLS = Cells((Plane(0, 0, 0, 2, 3),), (0,) * 6, tuple(range(6)))


def call(*arguments):
    return RUNNER.invoke(app, ["explain", *map(str, arguments)])


def panel_of(plt, cells=CELLS, number=0):
    return Panel(plt.figure().add_axes((0, 0, 1, 1)), Image.new("RGB", (60, 40), "gray"), cells, number)


def test_colours_are_those_of_the_scale():
    scores = {0: 0.1, 2: 0.4, 5: 0.25}
    with figure_style() as plt:
        panel = panel_of(plt)
        norm, kind = scale(scores.values())
        panel.heat(scores, norm)
        drawn = panel.axis.images[0]
        colors = drawn.to_rgba(drawn.get_array())
        plt.close("all")
    assert kind == "linear"
    for token, score in scores.items():
        assert np.allclose(colors[divmod(token, 3)], colormaps[MAP](norm(score)))
    assert drawn.get_array().mask.ravel().tolist() == [token not in scores for token in range(6)]


def test_wide_scores_have_a_logarithmic_scale():
    norm, kind = scale([0.001, 0.002, 0.003, 0.5, float("-inf")])
    assert kind == "logarithmic"
    assert (norm.vmin, norm.vmax) == (0.001, 0.5)
    assert scale([-1.0, 0.0, 100.0])[1] == "linear"
    assert scale([])[1] == "linear"
    norm, _ = scale([2.0, 2.0])
    assert norm.vmin < norm.vmax


def test_a_region_is_outlined_once():
    with figure_style() as plt:
        panel = panel_of(plt)
        panel.outline([0, 1, 3, 4])
        segments = panel.axis.collections[-1].get_segments()
        plt.close("all")
    assert len(segments) == 4


def test_arrows_lead_into_the_kept_token():
    with figure_style() as plt:
        panel = panel_of(plt)
        panel.merged({0: 0, 1: 0, 4: 0, 5: 5}, [0, 5])
        (arrows,) = [found for found in panel.axis.collections if hasattr(found, "U")]
        ends = np.stack([arrows.X + arrows.U, arrows.Y + arrows.V])
        plt.close("all")
    assert arrows.N == 2
    assert np.allclose(ends, [[80.0, 80.0], [80.0, 80.0]])  # a panel is 480 units wide


@pytest.mark.slow
def test_pictures_of_many_kinds(tmp_path):
    done = call(
        "--task", "list-all:2", "--model", "testbed-plain", "--out", tmp_path, "--max-new-tokens", 5,
        "-s", "{name: st3, horizon: 8}, pool, none", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    files = [path.rsplit("/", 1)[1] for path in json.loads(done.stdout)["files"]]
    assert files[0] == "side-by-side.png"
    assert files[-1] == "explain.json"
    assert [name for name in files if "pool" in name] == ["2-pool-01-boundary-00.png"]
    assert "1-st3-decode.png" in files
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    for name in files[:-1]:
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300
    numbers = json.loads((tmp_path / "explain.json").read_text())
    assert [one["spec"]["name"] for one in numbers["strategies"]] == ["st3", "pool", "none"]
    assert len(numbers["strategies"][1]["stages"][0]["into"]) == 100
    # A second explanation replaces the first; what else lies in the folder stays.
    (tmp_path / "mine.png").write_bytes(b"")
    call("--task", "list-all", "--model", "testbed-plain", "--out", tmp_path, "-s", "text-only", "--no-baseline")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["1-text-only-01-boundary-02.png", "explain.json", "mine.png", "side-by-side.png"]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "planes"), [("testbed-llava-next", 2), ("testbed-qwen2.5-vl", 1)])
def test_grids_of_other_families(model, planes, picture, tmp_path):
    done = call("--image", picture, "--model", model, "-s", "fastv", "--out", tmp_path, "--max-new-tokens", 3)
    assert done.exit_code == 0, done.stderr
    (one,) = json.loads((tmp_path / "explain.json").read_text())["strategies"]
    assert len(one["cells"]["planes"]) == planes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "one of --image, --video and --task"),
        (("--task", "nothing-such"), "nothing-such"),
        (("--task", "where:x"), "a number from 0"),
        (("--task", "where", "--prompt", "what ?"), "The task brings its own question"),
        (("--task", "where", "-s", "fastw"), "fastv"),
        (("--task", "where", "-s", ","), "at least one strategy"),
        (("--image", "missing.png"), "missing.png"),
        (("--task", "where", "-s", "{name: fastv, k: 99}"), "99"),
    ],
)
def test_bad_input_leaves_nothing_behind(arguments, said, tmp_path):
    out = tmp_path / "out"
    done = call(*arguments, "--model", "testbed-plain", "--out", out)
    assert done.exit_code == 2
    assert said in done.stderr
    assert not out.exists()


def test_a_strategy_that_wants_evidence_needs_a_task(picture, tmp_path):
    done = call("--image", picture, "--model", "testbed-plain", "-s", "oracle", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "evidence" in done.stderr


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "explain.json").write_text("[]")
    done = call("--task", "where", "--model", "testbed-plain", "--out", tmp_path)
    assert done.exit_code == 2
    assert "choose another --out" in done.stderr


@pytest.mark.parametrize("strategy", ["none", "fastv", "st3", "{name: pvtp, stride: 2}"])
def test_the_overview_is_as_narrow_as_a_page_and_its_words_fit(strategy):
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from tokentrim.explain.overview import overview_figure

    loaded, asked = load_model("testbed"), TASKS["list-all"].samples("test", 1)[0]
    inputs = prompt_inputs(loaded.processor, [asked.question], [asked.images])
    found, images = explain(loaded, strategy_from(strategy).strategy, inputs, max_new_tokens=4), list(asked.images)
    with figure_style():
        figure = overview_figure(plt, [found, found], images, [""], "where is it ? " * 30, "a long answer , " * 40)
        renderer = FigureCanvasAgg(figure).get_renderer()
        boxes = [text.get_window_extent(renderer) for text in figure.texts if text.get_text()]
        width, height = figure.get_size_inches() * figure.dpi
        plt.close("all")
    assert width <= 6 * figure.dpi
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
    assert not [(a, b) for place, a in enumerate(boxes) for b in boxes[:place] if a.overlaps(b)]
