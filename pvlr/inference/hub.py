"""Models on the Hugging Face Hub: download and publication of folders."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pvlr.core.models.state import PretrainedError
from pvlr.core.towers.files.sources import HUB_PREFIX

__all__ = ["fetch", "publish", "require_repository"]

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def fetch(
    source: str | os.PathLike[str], files: Sequence[str], *, revision: str | None = None, cache_dir: str | None = None
) -> Path:
    """Return the folder that a source names, downloaded first if it is on the Hub.

    Args:
        source: A folder, or ``hf-hub:ORGANISATION/REPOSITORY``. A folder is never searched on the Hub.
        files: Names of the files that are downloaded, and no others.
        revision: Branch, tag or commit; for the Hub alone.
        cache_dir: Folder for downloads; None: the default cache.

    Raises:
        PretrainedError: if there is no such folder, the name is invalid, or the download fails.

    Example:
        >>> fetch("me/mine", ())
        Traceback (most recent call last):
            ...
        pvlr.core.models.state.PretrainedError: me/mine: expected a folder with a trained model, found none; one of the
        Hugging Face Hub is named hf-hub:me/mine
    """
    name = os.fspath(source)
    if not name.startswith(HUB_PREFIX):
        if not Path(name).is_dir():
            hint = f"; one of the Hugging Face Hub is named {HUB_PREFIX}{name}" if REPOSITORY.fullmatch(name) else ""
            raise PretrainedError(f"{name}: expected a folder with a trained model, found none{hint}")
        if revision is not None:
            raise PretrainedError(f"revision: expected none with the folder {name}, got '{revision}'")
        return Path(name)
    repository = require_repository(name.removeprefix(HUB_PREFIX))
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository, revision=revision, cache_dir=cache_dir, allow_patterns=list(files), etag_timeout=10
            )
        )
    except Exception as err:  # The network's, the package's and the file system's errors share no base class.
        raise PretrainedError(f"{name}: could not be fetched from the Hugging Face Hub: {_first_line(err)}") from err


def publish(folder: Path, repository: str, files: Sequence[str], *, private: bool = False) -> str:
    """Publish the files of a folder.

    Args:
        folder: Folder of the files.
        repository: ``ORGANISATION/REPOSITORY``; created if absent.
        files: Names of the files; those of an earlier version that this one lacks are deleted.
        private: Whether a new repository is private.

    Returns:
        The address of the published files.

    Raises:
        PretrainedError: if it cannot be published.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(files), delete_patterns=list(files)
        )
    except Exception as err:  # The network's, the package's and the file system's errors share no base class.
        reason = _first_line(err)
        raise PretrainedError(f"{repository}: could not be published on the Hugging Face Hub: {reason}") from err
    return str(done)


def require_repository(name: str) -> str:
    """Return a repository's name, if it is valid.

    Raises:
        PretrainedError: naming it, if it is not.
    """
    if not REPOSITORY.fullmatch(name):
        raise PretrainedError(f"{name}: expected ORGANISATION/REPOSITORY")
    return name


def _first_line(err: Exception) -> str:
    return next((line.strip() for line in str(err).splitlines() if line.strip()), type(err).__name__)
