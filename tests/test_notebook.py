"""The notebook of the examples runs from its first cell to its last, offline; its outputs are not kept in git."""

from pathlib import Path

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient

from tokentrim.testbed import model_folder

NOTEBOOK = Path(__file__).parent.parent / "docs/examples/tokentrim.ipynb"


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_outputs_are_stripped():
    nbformat.validate(read())
    for cell in read().cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    if not (model_folder("testbed") / "model.safetensors").is_file():
        pytest.skip("no trained testbed model in this checkout")
    root = NOTEBOOK.parents[2]
    monkeypatch.setenv("PYTHONPATH", ":".join(str(root / part) for part in ("", "strategies", "adapters")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("JUPYTER_PATH", str(kernel_in(tmp_path / "jupyter")))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    where = {"metadata": {"path": str(tmp_path)}}
    nb = NotebookClient(read(), kernel_name="here", timeout=120, resources=where).execute()
    shown = ["".join(o.get("data", {}).get("text/html", "") for o in cell.get("outputs", ())) for cell in nb.cells]
    session, plan, compared, frame, own, again = filter(None, shown)
    for html in (session, again):
        assert html.count("<details") >= 2
        assert "data:image/webp;base64," in html
        assert len(html) < 80_000
    assert "annotate(images" not in session
    assert "prefill FLOPs, physical" in plan
    assert "fastv" in compared
    assert "layer_mean_ratio" in frame
    assert "gain_vs_random" in own


def kernel_in(folder):
    """A kernel of this very interpreter, whatever kernels a machine has."""
    write_kernel_spec(folder / "kernels/here")
    return folder
