"""Files of scores: read as they are, and refused in one sentence, whatever is in them."""

import io
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pvlr.data.batch import DataError
from pvlr.train.evaluation.score_files import read_scores

SCORES = np.array([[0.9, 0.2], [0.4, 0.7]], dtype=np.float32)
TARGETS = np.array([[1, 0], [0, 1]])
CSV = "image,label,score,target\na,cat,0.9,1\na,dog,0.2,0\nb,dog,0.7,1\nb,cat,0.4,\n"


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_arrays_come_back_as_they_are(tmp_path: Path) -> None:
    known = np.array([[True, True], [False, True]])
    path = npz(tmp_path / "a.npz", scores=SCORES, targets=TARGETS, known=known, names=np.array(["cat", "dog"]))
    found = read_scores(path)
    assert list(found.labels) == ["cat", "dog"]
    assert found.scores.tolist() == found.probabilities.tolist()
    assert_close(found.scores, torch.tensor([[0.9, 0.2], [0.0, 0.7]]))
    assert found.target.tolist() == [[1, 0], [0, 1]]
    assert found.known.tolist() == known.tolist()


def test_without_names_and_mask_columns_have_numbers_and_all_is_known(tmp_path: Path) -> None:
    found = read_scores(npz(tmp_path / "a.npz", scores=SCORES.astype(np.float16), targets=TARGETS.astype(bool)))
    assert (list(found.labels), found.known.all().item()) == (["0", "1"], True)


def test_logits_are_ranked_by_as_they_are(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", scores=SCORES * 100, targets=TARGETS)
    found = read_scores(path, "logits")
    assert_close(found.scores, torch.from_numpy(SCORES * 100))
    assert_close(found.probabilities, torch.from_numpy(SCORES * 100).sigmoid())


def test_rows_of_a_table_are_cells_and_what_is_missing_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(CSV + "c,cat,0.1,0\n")
    found = read_scores(path)
    assert list(found.labels) == ["cat", "dog"]
    assert found.known.tolist() == [[True, True], [False, True], [True, False]]
    assert found.target.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert_close(found.scores, torch.tensor([[0.9, 0.2], [0.0, 0.7], [0.1, 0.0]]).double())


def test_junk_where_nothing_is_known_is_no_matter(tmp_path: Path) -> None:
    scores, targets = SCORES.copy(), TARGETS.copy()
    scores[0, 0], targets[0, 0] = np.nan, -1
    path = npz(tmp_path / "a.npz", scores=scores, targets=targets, known=np.array([[False, True], [True, True]]))
    assert read_scores(path).scores[0, 0] == 0


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return print, ("executed",)


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


S, T = SCORES, TARGETS
BAD_NPZ = {
    "a pickle": (
        lambda p: p.write_bytes(pickle.dumps(Evil())),
        "npz file of scores, File is not a zip",
    ),
    "nothing": (lambda p: p.write_bytes(b""), "npz file of scores, File is not a zip"),
    "objects": (lambda p: npz(p, scores=np.array([Evil()]), targets=T), "scores.npy holds Python objects"),
    "a lie": (
        lambda p: archive(p, scores=header((10**6, 10**6)), targets=b""),
        "scores.npy says to hold 4000000000",
    ),
    "no array": (lambda p: archive(p, scores=b"abc", targets=b""), "a readable .npz file of scores"),
    "half": (lambda p: p.write_bytes(npz(p, scores=S, targets=T).read_bytes()[:200]), "a readable"),
    "one array": (lambda p: npz(p, scores=S), "arrays 'scores' and 'targets', found no 'targets'"),
    "whole numbers": (
        lambda p: npz(p, scores=T, targets=T),
        "'scores' to be rows of floats, got int64",
    ),
    "one axis": (lambda p: npz(p, scores=S[0], targets=T), "'scores' to be rows of floats"),
    "no rows": (lambda p: npz(p, scores=S[:0], targets=T[:0]), "'scores' to be rows of floats"),
    "short": (
        lambda p: npz(p, scores=S, targets=T[:1]),
        r"'targets' to be numbers \(2, 2\), got int64",
    ),
    "text": (lambda p: npz(p, scores=S, targets=T.astype(str)), r"'targets' to be numbers \(2, 2\)"),
    "mask": (lambda p: npz(p, scores=S, targets=T, known=T), "'known' to be true or false"),
    "names": (
        lambda p: npz(p, scores=S, targets=T, names=np.array(["a"])),
        r"'names' to be texts \(2,\)",
    ),
    "twice": (lambda p: npz(p, scores=S, targets=T, names=np.array(["a", "a"])), "'a'"),
    "targets": (lambda p: npz(p, scores=S, targets=T * 2), "targets 0 or 1 wherever known, got 2"),
    "nan": (lambda p: npz(p, scores=S * np.nan, targets=T), "finite scores wherever known, got nan"),
    "logits": (lambda p: npz(p, scores=S * 2, targets=T), "got 1.8: are these logits?"),
    "negative": (lambda p: npz(p, scores=-SCORES, targets=T), "got -0.9: are these logits?"),
}


@pytest.mark.parametrize("name", BAD_NPZ)
def test_a_bad_archive_is_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = BAD_NPZ[name]
    path = tmp_path / "bad.npz"
    make(path)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*{message}") as found:
        read_scores(path)
    assert "\n" not in str(found.value)
    assert capsys.readouterr().out == ""


BAD_CSV = {
    "nothing": ("", "the columns image, label, score, target, found no 'image'"),
    "a column": ("image,label,score\na,b,0.1\n", "found no 'target'"),
    "no rows": ("image,label,score,target\n", "at least one row of scores, found none"),
    "a cell": (CSV + "a,b\n", "line 6: expected an image, a label, a score and a target, found fewer cells"),
    "twice": (CSV + "a,cat,0.1,0\n", "line 6: expected each label of an image once, found 'cat' again"),
    "target": (CSV + "c,cat,0.1,yes\n", "line 6: expected a target 0, 1 or nothing, got 'yes'"),
    "score": (CSV + "c,cat,high,1\n", "line 6: expected a number as score, got 'high'"),
    "nan": (CSV + "c,cat,nan,1\n", "finite scores wherever known, got nan"),
    "bytes": ("\udcff", "a CSV file in UTF-8"),
    "name": (CSV.replace("cat", ""), "names: "),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_a_bad_table_is_one_sentence(name: str, tmp_path: Path) -> None:
    content, message = BAD_CSV[name]
    path = tmp_path / "bad.csv"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}.*{message}"):
        read_scores(path)


def test_other_files_and_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scores.pkl: expected a file of scores that ends in .npz or .csv"):
        read_scores(tmp_path / "scores.pkl")
    with pytest.raises(DataError, match=r"scores.npz: expected a file of scores, found no such file"):
        read_scores(tmp_path / "scores.npz")


def test_numbers_of_another_byte_order_are_the_same(tmp_path: Path) -> None:
    scores, targets = np.array([[0.25, 0.5]], dtype=">f4"), np.array([[1, 0]], dtype=">i2")
    np.savez(tmp_path / "x.npz", scores=scores, targets=targets)
    found = read_scores(tmp_path / "x.npz", "probabilities")
    assert found.scores.tolist() == [[0.25, 0.5]]
    assert found.target.tolist() == [[1.0, 0.0]]
