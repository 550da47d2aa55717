"""Results in Python: read back from their folder, as a DataFrame, and in a notebook."""

import sys

import pandas as pd
import pytest

from tokentrim.compare import Summary
from tokentrim.errors import ConfigError, ResultsError, UnsupportedError


@pytest.fixture(scope="module")
def summary(finished):
    return Summary.read(str(finished.folder))


def test_a_finished_folder_is_read_back(finished, summary):
    assert summary.folder == finished.folder
    assert [row["key"] for row in summary.cells] == [row["key"] for row in finished.cells]


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(ResultsError, match="summary"):
        Summary.read(tmp_path)


def test_cells_are_rows_of_a_frame(summary):
    frame = summary.frame()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame["key"]) == [row["key"] for row in summary.cells]
    assert list(frame["accuracy"]) == [row["accuracy"] for row in summary.cells]
    assert frame.columns.is_unique


def test_means_are_rows_of_a_frame(summary):
    frame = summary.frame("overall")
    assert list(frame["method"]) == [row["method"] for row in summary.overall]
    assert "tasks" in frame
    assert "task" not in frame


def test_other_rows_are_refused(summary):
    with pytest.raises(ConfigError, match="be cells or overall; got 'pooled'"):
        summary.frame("pooled")


def test_without_pandas_the_extra_is_named(summary, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UnsupportedError, match=r"find pandas. Pip install 'tokentrim-vlm\[report\]'"):
        summary.frame()


def test_a_notebook_shows_the_means(summary):
    html = summary._repr_html_()
    assert html.count("<table") == len(summary.data["models"])
    assert all(row["method"] in html for row in summary.overall)
