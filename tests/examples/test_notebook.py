"""The notebook runs as it is, from generated pictures to sidecars, and holds no outputs."""

import json
from pathlib import Path

import pytest
from helpers.extras import require_extra

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "your_photographs.ipynb"


def test_the_notebook_holds_no_outputs() -> None:
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert cell.get("outputs", []) == [], cell["source"]
        assert cell.get("execution_count") is None


def test_the_notebook_runs_from_pictures_to_sidecars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_extra("notebook", "nbclient", "nbformat", "ipykernel", "all_minilm_l6_v2")
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Settings of the user's own notebooks are not read, nor is anything written to their folder.
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    work = tmp_path / "your_photographs"
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2, "labels and maps are shown"
    assert "linear probe" in said
    table = (work / "labels.csv").read_text().splitlines()
    assert len(table) == 121
    assert "120 pictures: file://" in said
    assert (work / "gallery.html").read_text().count("<article") == 120
    assert json.loads((work / "run" / "run.json").read_text())["status"] == "finished"
    sidecars = list((work / "pictures").glob("*.xmp"))
    assert f"{len(sidecars)} sidecars" in said
    assert len(sidecars) > 20
