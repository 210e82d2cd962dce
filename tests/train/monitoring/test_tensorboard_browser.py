"""TensorBoard in a real browser: the tabs of a run show what they should."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import chromium
from helpers.tower_models import write_folder
from helpers.training_toys import LABELS, tiny_options, write_voc

from pvlr.cli.command import command
from pvlr.train import train
from pvlr.train.data_config import VOCData

# All that is written on the page, and how many pictures are drawn on it, inside of elements that hide their own.
READ = """
let text = [], images = 0;
const walk = node => {
  if (node.nodeType === Node.TEXT_NODE) text.push(node.textContent);
  if (node.tagName === 'IMG' && node.naturalWidth > 50) images++;
  if (node.tagName === 'STYLE' || node.tagName === 'SCRIPT') return;
  if (node.shadowRoot) walk(node.shadowRoot);
  if (node.tagName === 'IFRAME' && node.contentDocument) walk(node.contentDocument);
  for (const child of node.childNodes) walk(child);
};
walk(document.body);
return [text.join(' ').replace(/\\s+/g, ' '), images];
"""
PATIENCE = 60.0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("seen")
    write_folder(root, "vit")
    write_voc(root / "voc", train=12, test=6)
    for name, rate in (("one", 1e-3), ("two", 3e-3)):
        options = tiny_options(
            root / "voc", root, root / "runs" / name, run__tensorboard="true", run__log_every=1, optimizer__lr=rate
        )
        assert command(train, options, data=VOCData) == 0
    return root / "runs"


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while not loaded(f"http://127.0.0.1:{port}", "data/runs"):
            assert time.monotonic() < deadline, "TensorBoard does not answer"
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def loaded(address: str, path: str) -> Any:
    try:
        with urllib.request.urlopen(f"{address}/{path}", timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, address: str) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        browser.set_window_size(1600, 2400)
        yield browser


GROUPS = ("fusion", "gates", "gradient", "lr", "memory", "model", "speed", "test", "train")
TABS = {
    # Two groups of numbers are open at first, of the others the names are seen.
    "scalars": ("ap/red", "base/competition", *GROUPS),
    "custom_scalars": ("gradient by block", "learning rates", "share of the knowledge relation", "average precision"),
    "images": ("pictures/predictions", "pictures/attention", "relations/M_ka", "relations/M_ca", "mix_of_both"),
    "pr_curves": tuple(f"precision_recall/{label}" for label in LABELS),
    "histograms": ("gates/share_of_knowledge_by_channel",),
    "hparams": ("optimizer.lr", "loop.epochs", "test/mAP", "one/tensorboard", "two/tensorboard"),
    "text": ("run/configuration", '"betas"', '"versions"', '"identity"'),
    "projector": ("Points: 3", "fused, step 6", "names.tsv"),
}  # fmt: skip
PICTURES = {"images": 5}


@pytest.mark.parametrize("tab", TABS)
def test_tab(page: Any, address: str, tab: str) -> None:
    page.get("about:blank")
    page.get(f"{address}/#{tab}")
    deadline = time.monotonic() + PATIENCE
    missing: list[str] = [tab]
    while missing:
        text, pictures = page.execute_script(READ)
        missing = [wanted for wanted in TABS[tab] if wanted not in text]
        if pictures < PICTURES.get(tab, 0):
            missing.append(f"{PICTURES[tab]} pictures, there are {pictures}")
        assert time.monotonic() < deadline, f"not on the page: {missing}; there is: {re.sub(' +', ' ', text)[:2000]}"
        time.sleep(0.3)
