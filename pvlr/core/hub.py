"""Models on the Hugging Face Hub: fetched as a folder, published from one."""

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pvlr.core.towers.sources import HUB_PREFIX

if TYPE_CHECKING:
    from pvlr.core.model import PVLR

__all__ = ["PretrainedError", "fetch", "push_to_hub"]

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


class PretrainedError(ValueError):
    """A trained model that is missing, damaged, foreign or made for other towers, or cannot be shared."""


def fetch(
    source: str | os.PathLike[str], files: Sequence[str], *, revision: str | None = None, cache_dir: str | None = None
) -> Path:
    """The folder that a source names, fetched first where it is on the Hub.

    Args:
        source: A folder, or ``hf-hub:ORGANISATION/REPOSITORY``. A folder is never looked for on the Hub.
        files: Names of the files that are fetched, and no others.
        revision: Branch, tag or commit; for the Hub alone.
        cache_dir: Folder for what is downloaded; None for the usual cache.

    Raises:
        PretrainedError: where there is no such folder, the name is none, or nothing could be fetched.

    Example:
        >>> fetch("me/mine", ())
        Traceback (most recent call last):
            ...
        pvlr.core.hub.PretrainedError: me/mine: expected a folder with a trained model, found none; one of the Hugging
        Face Hub is named hf-hub:me/mine
    """
    name = os.fspath(source)
    if not name.startswith(HUB_PREFIX):
        if not Path(name).is_dir():
            hint = f"; one of the Hugging Face Hub is named {HUB_PREFIX}{name}" if REPOSITORY.fullmatch(name) else ""
            raise PretrainedError(f"{name}: expected a folder with a trained model, found none{hint}")
        if revision is not None:
            raise PretrainedError(f"revision: expected none with the folder {name}, got '{revision}'")
        return Path(name)
    repository = _repository(name.removeprefix(HUB_PREFIX))
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository, revision=revision, cache_dir=cache_dir, allow_patterns=list(files), etag_timeout=10
            )
        )
    except Exception as err:  # The network's, the package's and the file system's errors share no base class.
        raise PretrainedError(f"{name}: could not be fetched from the Hugging Face Hub: {_first_line(err)}") from err


def push_to_hub(model: "PVLR", repository: str, *, private: bool = False, include_towers: bool = False) -> str:
    """Publish a model: weights as safetensors, the rest as JSON, and a README made from what is known of it.

    Args:
        model: The model.
        repository: ``ORGANISATION/REPOSITORY``; made where it is absent.
        private: Whether a new one is private.
        include_towers: Whether the frozen towers are published too.

    Returns:
        The address of what was published.

    Raises:
        PretrainedError: where it cannot be saved or published, or nobody else could load its towers.
    """
    from huggingface_hub import HfApi

    from pvlr.core.pretrained import FILES, save_pretrained

    _repository(repository)
    origin = model.origin
    if origin is not None and origin.copies is None and origin.spec.is_local and not include_towers:
        raise PretrainedError(
            f"include_towers: expected True, the towers are '{origin.spec.name}' of this machine, which nobody else has"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_pretrained(model, folder, include_towers=include_towers, name=f"{HUB_PREFIX}{repository}")
        api = HfApi()
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            # What an earlier version had and this one has not goes.
            done = api.upload_folder(
                repo_id=repository, folder_path=folder, allow_patterns=list(FILES), delete_patterns=list(FILES)
            )
        except Exception as err:  # As above.
            raise PretrainedError(
                f"{repository}: could not be published on the Hugging Face Hub: {_first_line(err)}"
            ) from err
    return str(done)


def _repository(name: str) -> str:
    if not REPOSITORY.fullmatch(name):
        raise PretrainedError(f"{name}: expected ORGANISATION/REPOSITORY")
    return name


def _first_line(err: Exception) -> str:
    return next((line.strip() for line in str(err).splitlines() if line.strip()), type(err).__name__)
