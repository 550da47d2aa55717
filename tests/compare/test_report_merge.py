"""``tokentrim report``: a results folder once more, several runs as one, and what is refused."""

import copy
import json
import shutil

import pytest
from typer.testing import CliRunner

from tokentrim.cli import app

REPORTS = {"report.html", "report.md", "summary.csv", "pareto.png", "kept.png"}
RECORD = {"summary.json", "gallery.json"}


def report(*arguments):
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(result, *parts):
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr
    return result.stderr


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of a finished run's record."""
    target = tmp_path / "a"
    target.mkdir()
    for name in RECORD:
        shutil.copy(finished.folder / name, target)
    return target


def another(folder, name, change=lambda data, gallery: None):
    """A second run: the first one's record, changed."""
    target = folder.parent / name
    target.mkdir()
    data, gallery = (json.loads((folder / file).read_text()) for file in ("summary.json", "gallery.json"))
    change(data, gallery)
    (target / "summary.json").write_text(json.dumps(data))
    (target / "gallery.json").write_text(json.dumps(gallery))
    return target


def relabelled(old, new, **changes):
    """Makes one method of a run another one, and leaves the other methods."""

    def change(data, gallery):
        for row in (*data["cells"], *data["overall"]):
            if row["method"] == old:
                row |= {"method": new, **changes}
        for question in gallery["questions"]:
            for line in question["methods"]:
                if line["method"] == old:
                    line["method"] = new

    return change


def test_a_report_is_written_anew(finished, folder):
    before = json.loads((folder / "summary.json").read_text())
    result = report(folder)
    assert result.exit_code == 0, result.stderr
    assert names(folder) == RECORD | REPORTS
    assert json.loads((folder / "summary.json").read_text()) == before
    for name in ("report.html", "report.md"):
        assert (folder / name).read_text() == (finished.folder / name).read_text()


def test_formats_and_another_folder(folder, tmp_path):
    out = tmp_path / "deep" / "out"
    result = report(folder, "--out", out, "--format", "html,csv", "--format", "md", "--json")
    assert set(json.loads(result.stdout)) == {"summary", "gallery", "csv", "report", "page"}
    assert names(out) == RECORD | {"report.html", "report.md", "summary.csv"}
    assert names(folder) == RECORD
    assert "](pareto.png)" not in (out / "report.md").read_text()
    refused(report(folder, "--format", "pdf"), "'pdf'", "md, png")


def test_several_runs_become_one(folder, tmp_path):
    other = another(folder, "b", relabelled("fastv", "mine"))
    out = tmp_path / "both"
    assert report(folder, other, "--out", out, "--format", "md,html").exit_code == 0
    data, gallery = (json.loads((out / file).read_text()) for file in ("summary.json", "gallery.json"))
    methods = [row["method"] for row in data["cells"] if row["task"] == "where"]
    assert sorted(methods) == sorted([*{row["method"] for row in data["cells"]} - {"vta"}, "text-only"])
    assert {"fastv", "mine", "random", "none"} <= set(methods)
    assert not data["differences"]
    assert [run["name"] for run in data["sources"]] == ["a", "b"]
    for question in gallery["questions"]:
        lines = [(line["method"], line["boundary"]) for line in question["methods"]]
        assert len(lines) == len(set(lines))
        assert {"fastv", "mine"} <= {name for name, _ in lines}
    assert "Not one run" not in (out / "report.md").read_text()
    assert "mine" in (out / "report.html").read_text()
    again = tmp_path / "again"
    assert report(out, folder, "--out", again, "--format", "json").exit_code == 0
    assert json.loads((again / "summary.json").read_text())["cells"] == data["cells"]


def test_one_label_for_two_things_is_told_apart(folder, tmp_path):
    def better(data, gallery):
        for row in (*data["cells"], *data["overall"]):
            if row["method"] == "fastv":
                row["accuracy"] = 0.123

    out = tmp_path / "both"
    assert report(folder, another(folder, "b", better), "--out", out, "--format", "html").exit_code == 0
    rows = json.loads((out / "summary.json").read_text())["cells"]
    assert {row["method"] for row in rows if row["accuracy"] == 0.123} == {"fastv · b"}
    assert {"fastv", "random"} <= {row["method"] for row in rows}
    assert not {row["method"] for row in rows} & {"random · b", "none · b"}


def fingerprint(data, gallery):
    data["models"]["testbed-plain"]["fingerprint"] = "0123"


def split(data, gallery):
    data["config"]["split"] = "calibration"


def questions(data, gallery):
    data["config"]["samples"] = 99


def version(data, gallery):
    data["versions"]["torch"] = "9.9"


def device(data, gallery):
    data["models"]["testbed-plain"]["device"] = "cuda:0"


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (fingerprint, "models", "ingerprint of model 'testbed-plain': "),
        (split, "tasks", "plit: test in a against calibration in b"),
        (questions, "tasks", "where x 99 in b"),
        (version, "versions", "9.9 in b"),
        (device, "placement", "cuda:0 in b"),
    ],
)
def test_runs_that_do_not_compare_are_refused_unless_told(folder, tmp_path, change, kind, said):
    other, out = another(folder, "b", change), tmp_path / "both"
    refused(report(folder, other, "--out", out), said, f"--allow-different {kind}", "comparable runs")
    assert not out.exists()
    allowed = report(folder, other, "--out", out, "--allow-different", kind, "--format", "md,html")
    assert allowed.exit_code == 0, allowed.stderr
    for name in ("report.md", "report.html"):
        text = (out / name).read_text()
        heading = "testbed-plain</h2>" if "html" in name else "## "
        assert 0 < text.index("what is compared differs") < text.index(heading)
        assert "Differences between methods may be differences between runs" in text


def test_all_differences_are_named_at_once(folder, tmp_path):
    def all_of_them(data, gallery):
        version(data, gallery)
        split(data, gallery)

    message = refused(
        report(folder, another(folder, "b", all_of_them), "--out", tmp_path / "c"), "plit: test in a", "torch: "
    )
    assert "--allow-different tasks --allow-different versions" in message


def test_models_of_different_runs_stand_side_by_side(folder, tmp_path):
    def renamed(data, gallery):
        text = json.dumps(data).replace('"testbed-plain"', '"other"')
        data.update(json.loads(text))
        gallery.update(json.loads(json.dumps(gallery).replace('"testbed-plain"', '"other"')))

    out = tmp_path / "both"
    assert report(folder, another(folder, "b", renamed), "--out", out, "--format", "html").exit_code == 0
    data = json.loads((out / "summary.json").read_text())
    assert list(data["models"]) == ["testbed-plain", "other"]
    assert {question["model"] for question in json.loads((out / "gallery.json").read_text())["questions"]} == {
        "testbed-plain", "other",
    }  # fmt: skip


def test_bad_input(folder, tmp_path, finished):
    refused(report(tmp_path / "nowhere"), "be an existing folder")
    refused(report(folder, folder, "--out", tmp_path / "c"), "be named once")
    refused(report(folder, another(folder, "b")), "Add --out DIR")
    refused(report(folder, tmp_path / "b", "--out", finished.folder), "without a run in it")
    refused(report(folder, "--allow-different", "version"), "Did you mean 'versions'?")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(report(empty), "summary.json")
    (empty / "cells").mkdir()
    refused(report(empty), "The run was stopped")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("summary.json", "{", "be what tokentrim wrote"),
        ("summary.json", "[]", "hold a JSON object"),
        ("summary.json", "{}", "command: Field required"),
        ("gallery.json", '{"schema": 7}', "be 1; got 7"),
        ("gallery.json", '{"schema": 1, "images": {}, "questions": [{}]}', "questions.0.model"),
        ("gallery.json", None, "gallery.json"),
    ],
)
def test_folders_that_are_not_ours(folder, file, content, said):
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    refused(report(folder), said)
    assert not names(folder) & REPORTS


def _image(src):
    return lambda data, gallery: next(iter(gallery["images"].values()))[0].update(src=src)


def _line(**fields):
    return lambda data, gallery: gallery["questions"][0]["methods"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_image("javascript:alert(1)"), "embedded data of a PNG or JPEG"),
        (_image("http://127.0.0.1/a.png"), "embedded data of a PNG or JPEG"),
        (_image("data:image/svg+xml;base64,AAAA"), "embedded data of a PNG or JPEG"),
        (_image("data:text/html,<script>1</script>"), "embedded data of a PNG or JPEG"),
        (_image("data:image/png;base64,AAAA"), "be a picture"),
        (lambda data, gallery: gallery["images"].clear(), "must be of its 0 images"),
        (
            lambda data, gallery: gallery["questions"][0]["cells"][0]["runs"].append([0, 0, 10**9]),
            "questions.0.cells.0.runs",
        ),
        (
            lambda data, gallery: gallery["questions"][0]["cells"][0]["planes"][0].__setitem__(3, 10**5),
            "1 to 262144 tokens",
        ),
        (_line(prefill=[[0, "0-999999999"]]), "ascending runs of numbers below"),
        (_line(prefill=[[0, "3-1"]]), "ascending runs of numbers below"),
        (_line(n_layers=10**9), "n_layers"),
        (_line(steps=10**9), "steps"),
        (_line(cells=7), "must each have a place"),
        (_line(method="nobody"), "must have a cell"),
        (lambda data, gallery: data["overall"][0].update(model="other"), "'other' of a row must be listed"),
        (lambda data, gallery: data["overall"][0].update(accuracy="<b>"), "overall.0.accuracy"),
        (lambda data, gallery: data["config"].pop("strategies"), "config.strategies"),
        (
            lambda data, gallery: data["pooled"].append({**data["cells"][0], "method": "nobody"}),
            "be what tokentrim wrote",
        ),
    ],
)
def test_what_no_report_can_be_made_of_is_named(folder, change, said):
    broken = another(folder, "broken", change)
    before = {path: path.read_bytes() for path in broken.iterdir()}
    refused(report(broken, "--format", "html,md,csv"), str(broken), said)
    assert {path: path.read_bytes() for path in broken.iterdir()} == before


@pytest.mark.parametrize("name", sorted(RECORD))
def test_a_folder_in_a_files_place_is_named(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(report(folder), name, "be readable")


def test_a_row_without_what_reports_read_is_named(folder):
    data = json.loads((folder / "summary.json").read_text())
    broken = copy.deepcopy(data)
    del broken["cells"][1]["accuracy"]
    (folder / "summary.json").write_text(json.dumps(broken))
    refused(report(folder), "cells.1.accuracy")


def test_a_pass_of_an_earlier_version_may_lack_a_figure(folder):
    data = json.loads((folder / "summary.json").read_text())
    for row in (*data["cells"], *data["overall"]):
        del row["net_saving"], row["kv_peak_ratio"]
        row["total_time_ratio"] = 0.75
    (folder / "summary.json").write_text(json.dumps(data))
    assert report(folder).exit_code == 0
    for row in json.loads((folder / "summary.json").read_text())["cells"]:
        assert (row["net_saving"], row["kv_peak_ratio"]) == (0.25, None)
