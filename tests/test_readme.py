"""What the README shows is what runs."""

import re
from pathlib import Path

import pytest
from PIL import Image
from tagging_toys import make_tagger

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", [text for language, text in BLOCKS if language == "python"])
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "runs/quickstart" in code:  # What the console blocks above it leave.
        make_tagger(tmp_path / "tower").model.save_pretrained("runs/quickstart")
        Image.new("RGB", (40, 30)).save("picture.jpg")
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - the text is this repository's own


def test_commands_name_what_is_there() -> None:
    console = "\n".join(text for language, text in BLOCKS if language == "console")
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", console, re.MULTILINE)
    assert {"quickstart", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    paths = re.findall(r"\bexamples/[\w/]+\.\w+", README)
    assert len(paths) >= 4
    assert [path for path in paths if not (ROOT / path).is_file()] == []
