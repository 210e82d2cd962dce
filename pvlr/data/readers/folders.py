"""Reader of folders: each is named after a label and holds the pictures that show it."""

import filecmp
import os
from collections.abc import Iterator
from pathlib import Path

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError, refusal
from pvlr.data.dataset import LabelledImages, Transform
from pvlr.data.readers.entries import Entry, assemble, inside, require_files, require_name
from pvlr.data.sources import ENDINGS, is_picture, why_left_out

__all__ = ["ENDINGS", "files_below", "read_folders"]


def read_folders(
    root: str | os.PathLike[str],
    *,
    name: str | None = None,
    labels: LabelSet | None = None,
    several_labels: bool = True,
    transform: Transform | None = None,
) -> LabelledImages:
    """Read pictures from folders that are named after labels; all other labels of a picture are absent.

    A picture may be in a subfolder of its label's folder. With ``several_labels`` a picture with several labels is in
    the folder of each, under the same name: ``cat/1.jpg`` and ``dog/1.jpg`` are one picture with two labels. These
    files must be identical, byte for byte; if every folder numbers its own pictures from 1, ``several_labels=False``
    makes each file a picture of its own, with one label.

    Files and folders whose names begin with a dot are left out; anything else that is not a picture is refused.

    Args:
        root: The folder that holds the labels' folders, and nothing else; one such folder per split.
        name: Name of the data set; None: that of the folder.
        labels: The columns of the target, with or without a folder; None: the names of the folders, sorted.
        several_labels: Whether files of the same name in several folders are one picture.
        transform: Transform of the pictures, see `LabelledImages`.

    Returns:
        The pictures, sorted by name: with ``several_labels`` the path below the label's folder (``1.jpg``), else
        including it (``cat/1.jpg``).

    Raises:
        DataError: naming the file or folder that is unexpected, or the label that is unknown.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for file in ("cat/1.jpg", "dog/1.jpg", "dog/2.jpg"):
        ...         Path(folder, file).parent.mkdir(exist_ok=True)
        ...         Path(folder, file).touch()
        ...     data = read_folders(folder)
        ...     single = read_folders(folder, several_labels=False)
        >>> data.labels.names, data.identifiers, data.target.tolist()
        (('cat', 'dog'), ('1.jpg', '2.jpg'), [[1.0, 1.0], [0.0, 1.0]])
        >>> single.identifiers
        ('cat/1.jpg', 'dog/1.jpg', 'dog/2.jpg')
    """
    root = Path(root)
    folders: list[str] = []
    for item in _listed(root):
        if not _is_folder(item):
            hint = _beside(root / item.name)
            raise DataError(f"{item.path}: expected only folders named after labels in {root}, found a file{hint}")
        folders.append(item.name)
    if not folders:
        raise DataError(f"{root}: expected folders named after labels, found none")
    found: dict[str, Entry] = {}
    for label in folders:
        for below in _pictures(root / label):
            whole, path = inside(root, f"{label}/{below}", str(root / label))
            key = below if several_labels else whole
            entry = found.get(key)
            if entry is None:
                found[key] = Entry(str(path), key, path, [label])
            else:
                _require_same(Path(entry.place), path)
                found[key] = entry._replace(present=[*entry.present, label])
    labels = LabelSet(tuple(folders)) if labels is None else labels
    entries = [found[key] for key in sorted(found)]
    require_files(entries, root)
    return assemble(name or root.resolve().name, entries, labels, transform=transform)


def _listed(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as items:
            found = sorted((item for item in items if not item.name.startswith(".")), key=lambda item: item.name)
    except OSError as err:
        raise refusal(err)(f"{folder}: expected a folder, but {err.strerror or err}") from None
    for item in found:
        require_name(str(folder), "a file or folder", item.name)
    return found


def _is_folder(item: "os.DirEntry[str]") -> bool:
    try:
        return item.is_dir()
    except OSError as err:
        raise refusal(err)(f"{item.path}: expected a folder or a picture, but {err.strerror or err}") from None


def files_below(folder: Path) -> Iterator[str]:
    """Yield the names of the files below a folder, relative to it; those that begin with a dot are left out.

    Raises:
        DataError: naming a folder that cannot be listed, a link to one, or anything else that is not a file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "a").mkdir()
        ...     Path(folder, "a", "1.jpg").touch()
        ...     list(files_below(Path(folder)))
        ['a/1.jpg']
    """
    todo = [""]
    while todo:  # Not recursive: folders may be nested deeper than Python's limit.
        below = todo.pop()
        for item in _listed(folder / below):
            if _is_folder(item):
                if item.is_symlink():
                    # It may form a cycle.
                    raise DataError(f"{item.path}: expected folders and pictures, found a link to a folder")
                todo.append(f"{below}{item.name}/")
            elif not item.is_file():
                raise DataError(f"{item.path}: expected a picture ({', '.join(ENDINGS)}), found something else")
            else:
                yield f"{below}{item.name}"


def _pictures(folder: Path) -> Iterator[str]:
    """Yield the names of the pictures below a folder, relative to it."""
    for name in files_below(folder):
        path = folder / name
        if not is_picture(path):
            otherwise = f"{path}: expected a picture ({', '.join(ENDINGS)}), found something else{_beside(path)}"
            raise DataError(why_left_out(path) or otherwise)
        yield name


def _beside(path: Path) -> str:
    """The hint at the reader of labels beside pictures, where a file is one of such a pair."""
    others = (".txt",) if path.suffix.lower() in ENDINGS else ENDINGS if path.suffix.lower() == ".txt" else ()
    pair = any(os.path.isfile(place) for ending in others for place in (path.with_suffix(ending), f"{path}{ending}"))
    return "; if the labels of each picture stand in a .txt beside it, set form to 'sidecars'" if pair else ""


def _require_same(first: Path, second: Path) -> None:
    try:
        same = filecmp.cmp(first, second, shallow=False)
    except OSError as err:
        raise DataError(f"{second}: expected a picture, but {err.strerror or err}") from None
    if not same:
        raise DataError(
            f"{second}: expected the same picture as {first}, since it has the same name, found another "
            "(several_labels=False makes them two)"
        )
