"""The tables of docs/results.md are those of the cells that lie beside it."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", DOCS / "results" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_tables_of_its_cells(tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    assert tables.page(text) == text, "python docs/results/tables.py writes them anew"
    shown = {(block[2], block[3]) for block in tables.BLOCK.finditer(text)}
    assert {kind for _, kind in shown} == {path.stem for path in (DOCS / "results").glob("*.jsonl")}
    assert {table for table, _ in shown} == set(tables.TABLES)
    # Other cells, another page: the tables are not a text that is always the same.
    of = tables.cells_of
    monkeypatch.setattr(tables, "cells_of", lambda kind: [{**cell, "mAP": cell["mAP"] / 2} for cell in of(kind)])
    assert tables.page(text) != text


def test_each_figure_of_the_page_is_drawn_from_the_cells(tables: ModuleType, tmp_path: Path) -> None:
    for path in (DOCS / "results").glob("*.jsonl"):
        tables.draw(path.stem, tmp_path)
    tables.draw_questions(tmp_path)
    shown = re.findall(r"\]\(figures/(\w+\.svg)\)", (DOCS / "results.md").read_text(encoding="utf-8"))
    assert {path.name for path in tmp_path.iterdir()} == set(shown)
    words = ["knowledge prompts alone", "attention labels to patches", "scenes, 10 %", "VOC, 4 positives"]
    assert all(word in (tmp_path / "parts.svg").read_text(encoding="utf-8") for word in words)
    words = ["zero-shot", "DualCoOp", "COCO", "VOC", "scenes"]
    assert all(word in (tmp_path / "unseen.svg").read_text(encoding="utf-8") for word in words)


def test_a_cell_is_of_one_row_and_seed(tables: ModuleType) -> None:
    for path in (DOCS / "results").glob("*.jsonl"):
        cells = tables.cells_of(path.stem)
        names = [(cell["group"], cell["row"], cell["seed"]) for cell in cells]
        assert len(set(names)) == len(names)
        assert {len(cell["drawn"]) for cell in cells} == {500}
        assert set(names) >= {("all labels", "PVLR", 0)}
        for cell in cells:
            found = cell.get("harmonic", cell["mAP"])
            assert min(cell["drawn"]) <= found <= max(cell["drawn"])
            assert re.fullmatch(r"[0-9a-f]{64}", cell["digest"])


def test_cells_are_collected_in_the_place_of_older_ones(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "HERE", tmp_path)
    (tmp_path / "study" / "cells").mkdir(parents=True)
    cell = {"group": "all labels", "row": "PVLR", "seed": 0, "mAP": 0.5, "drawn": [0.123456]}
    for number, one in enumerate([{**cell, "seed": 1}, cell, {**cell, "row": "zero-shot"}]):
        (tmp_path / "study" / "cells" / f"{number}.json").write_text(json.dumps(one))
    assert tables.collect(tmp_path / "study", "voc") == 3
    assert [(found["row"], found["seed"]) for found in tables.cells_of("voc")] == [
        ("PVLR", 0), ("PVLR", 1), ("zero-shot", 0),
    ]  # fmt: skip
    assert tables.cells_of("voc")[0]["drawn"] == [0.1235]
    (tmp_path / "study" / "cells" / "0.json").write_text(json.dumps({**cell, "mAP": 0.75}))
    (tmp_path / "study" / "cells" / "1.json").unlink()
    assert tables.collect(tmp_path / "study", "voc") == 3
    assert tables.cells_of("voc")[0]["mAP"] == 0.75
