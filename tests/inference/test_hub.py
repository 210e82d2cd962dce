"""Models of the Hugging Face Hub: the real client against a server of this test's own, and what is handed to it.

No test reaches the Hub. Fetching goes through the real ``huggingface_hub`` to a local server that answers as the Hub
does; publishing is checked up to the call of ``HfApi``, which a stand-in takes.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.model_toys import moved
from helpers.tower_models import write_folder

from pvlr.core import PVLR, LabelSet, PretrainedError, PVLRConfig, TowerSpec, build_towers
from pvlr.inference.card import ModelCard
from pvlr.inference.recognizer import Recognizer

COMMIT = "c" * 40


def made(folder: Path) -> Recognizer:
    write_folder(folder, "vit")
    towers = build_towers(TowerSpec(name=f"local-dir:{folder}"))
    model = PVLR.from_towers(PVLRConfig(heads=4), LabelSet(("cat", "cow")), towers).eval()
    moved(model, 0)  # Weights that are where they start are the same without being read.
    return Recognizer(model, card=ModelCard(command="python train.py"))


class Hub:
    """Files of one repository, and which of them were asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[str]()

    def names(self) -> list[str]:
        return [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    served = Hub(tmp_path / "served")

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path.startswith(("/api/models/me/mine/revision/", "/api/models/me/mine/tree/")):
                files = [
                    {"rfilename": name, "path": name, "type": "file", "size": 1, "oid": "0"} for name in served.names()
                ]
                told = files if "/tree/" in path else {"id": "me/mine", "sha": COMMIT, "siblings": files}
                self.send(200, json.dumps(told).encode(), {})
                return
            name = path.removeprefix(f"/me/mine/resolve/{COMMIT}/")
            if name == path or name not in served.names():
                self.send(404, b"", {"X-Error-Code": "EntryNotFound" if "/me/mine/" in path else "RepoNotFound"})
                return
            served.asked.append(name)
            content = (served.folder / name).read_bytes()
            self.send(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

        do_HEAD = do_GET

        def send(self, code: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", place)
    template = place + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_is_fetched_by_the_real_client(hub: Hub, tmp_path: Path) -> None:
    recognizer = made(tmp_path / "tower")
    recognizer.save_pretrained(hub.folder, include_towers=True)
    (hub.folder / "setup.py").write_text("raise SystemExit")  # What is no part of a model is not fetched.
    found = Recognizer.from_pretrained("hf-hub:me/mine", cache_dir=str(tmp_path / "cache"))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.model(images).logits, recognizer.model(images).logits)
    assert {"model.json", "model.safetensors", "towers/open_clip_config.json"} <= set(hub.asked)
    assert "setup.py" not in hub.asked


def test_what_is_not_there_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(PretrainedError) as caught:
        Recognizer.from_pretrained("hf-hub:me/other", cache_dir=str(tmp_path / "cache"))
    assert str(caught.value).startswith("hf-hub:me/other: could not be fetched from the Hugging Face Hub: ")
    assert "\n" not in str(caught.value)


class StandIn:
    """Stand-in for ``HfApi``, which keeps its arguments."""

    calls: list[tuple[str, dict[str, Any]]]
    fails = False

    def create_repo(self, repository: str, **given: Any) -> None:
        if StandIn.fails:
            raise OSError("401 Unauthorized\nlog in first")
        StandIn.calls.append((repository, given))

    def upload_folder(self, *, folder_path: Path, **given: Any) -> str:
        files = {path.relative_to(folder_path).as_posix(): path.read_bytes() for path in folder_path.rglob("*.*")}
        StandIn.calls.append(("upload", {**given, "files": files}))
        return "address"


def test_publishing_hands_over_a_model_that_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StandIn.calls, StandIn.fails = [], False
    monkeypatch.setattr("huggingface_hub.HfApi", StandIn)
    recognizer = made(tmp_path / "tower")
    with pytest.raises(
        PretrainedError, match=r"include_towers: expected True, the towers are 'local-dir:.* nobody else has$"
    ):
        recognizer.push_to_hub("me/mine")
    with pytest.raises(PretrainedError, match=r"^mine: expected ORGANISATION/REPOSITORY$"):
        recognizer.push_to_hub("mine", include_towers=True)
    assert StandIn.calls == []
    assert recognizer.push_to_hub("me/mine", private=True, include_towers=True) == "address"
    (repository, made_with), (_, upload) = StandIn.calls
    assert (repository, made_with) == ("me/mine", {"private": True, "exist_ok": True})
    assert upload["repo_id"] == "me/mine"
    for name, content in upload["files"].items():
        assert name in upload["allow_patterns"]
        (tmp_path / "got" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "got" / name).write_bytes(content)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(
        Recognizer.from_pretrained(tmp_path / "got").model(images).logits, recognizer.model(images).logits
    )
    assert 'Recognizer.from_pretrained("hf-hub:me/mine")' in upload["files"]["README.md"].decode()
    StandIn.fails = True
    with pytest.raises(PretrainedError, match=r"^me/mine: could not be published on the Hugging Face Hub: 401 Unauth"):
        recognizer.push_to_hub("me/mine", include_towers=True)
