"""Sidecars of tags: made, completed without a loss, and refused where they are anything else."""

import re
import subprocess
from pathlib import Path

import pytest
from helpers.extras import require_program

from pvlr.data.batch import DataError
from pvlr.inference import xmp
from pvlr.inference.xmp import read_sidecar, sidecar_of, write_sidecar

BY_HAND = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<!-- kept -->
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="by hand">
 <r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <r:Description r:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:mine="http://example.org/mine/"
    xmp:Rating="4" mine:note="a &amp; b">
   <mine:dc r:parseType="Resource" xmlns:dc="http://example.org/other/"><dc:subject>no tag</dc:subject></mine:dc>
   <d:subject xmlns:d="http://purl.org/dc/elements/1.1/"><r:Bag><r:li>holiday</r:li><r:li>cat</r:li></r:Bag></d:subject>
  </r:Description>
 </r:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def test_a_sidecar_is_made_with_tags_where_each_program_looks(tmp_path: Path) -> None:
    path = write_sidecar(tmp_path / "a.jpg", ["cat", "traffic light", "cat", "<b> & ü"])
    assert path == tmp_path / "a.jpg.xmp"
    assert read_sidecar(path) == ("cat", "traffic light", "<b> & ü")
    text = path.read_text(encoding="utf-8")
    for name in ("dc:subject", "digiKam:TagsList", "lr:hierarchicalSubject"):
        assert text.count(f"<{name}>") == 1
    assert text.count("<rdf:li>cat</rdf:li>") == 3
    assert [found.name for found in tmp_path.iterdir()] == ["a.jpg.xmp"]


def test_levels_of_a_name_are_separated_as_each_program_has_them(tmp_path: Path) -> None:
    for _ in range(2):  # What is there is found again under each program's name.
        path = write_sidecar(tmp_path / "a.jpg", ["animal/dog", "animal|pet|cat", "tree"])
    lists = re.findall(r"<(dc:subject|digiKam:TagsList|lr:hierarchicalSubject)>(.*?)</\1>", path.read_text())
    assert {name: re.findall("<rdf:li>(.*?)</rdf:li>", content) for name, content in lists} == {
        "dc:subject": ["animal/dog", "animal|pet|cat", "tree"],
        "digiKam:TagsList": ["animal/dog", "animal/pet/cat", "tree"],
        "lr:hierarchicalSubject": ["animal|dog", "animal|pet|cat", "tree"],
    }


def test_names_may_come_from_an_iterator(tmp_path: Path) -> None:
    path = write_sidecar(tmp_path / "a.jpg", iter(["cat"]))
    assert path.read_text(encoding="utf-8").count("<rdf:li>cat</rdf:li>") == 3


def test_a_picture_without_tags_has_an_empty_sidecar(tmp_path: Path) -> None:
    assert read_sidecar(write_sidecar(tmp_path / "a.jpg", [])) == ()


def test_one_written_by_hand_keeps_all_that_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg.xmp"
    path.write_text(BY_HAND, encoding="utf-8")
    assert write_sidecar(tmp_path / "a.jpg", ["cat", "dog"]) == path
    assert read_sidecar(path) == ("holiday", "cat", "dog")
    text = path.read_text(encoding="utf-8")
    for part in (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>', "<!-- kept -->", 'x:xmptk="by hand"',
        'xmp:Rating="4"', 'mine:note="a &amp; b"', '<?xpacket end="w"?>',
        'xmlns:dc="http://example.org/other/"', 'r:parseType="Resource"', "><dc:subject>no tag</dc:subject></mine:dc>",
        "<r:li>holiday</r:li><r:li>cat</r:li><r:li>dog</r:li></r:Bag></d:subject>",
    ):  # fmt: skip
        assert part in text
    # Properties that are new declare their prefixes, with the file's own prefix of RDF.
    assert '<digiKam:TagsList xmlns:digiKam="http://www.digikam.org/ns/1.0/"><r:Seq><r:li>cat</r:li>' in text
    before = path.read_bytes()
    stamp = path.stat().st_mtime_ns
    write_sidecar(tmp_path / "a.jpg", ["dog", "cat"])
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, stamp), "nothing new is not written"


def test_a_prefix_that_means_something_else_there_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a.xmp"
    path.write_text(
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        'xmlns:dc="http://example.org/dc/" dc:subject="kept" xmlns:lr="http://example.org/lr/"/></rdf:RDF>'
    )
    assert write_sidecar(tmp_path / "a.jpg", ["cat"]) == path
    assert read_sidecar(path) == ("cat",)
    assert 'dc:subject="kept"' in path.read_text()
    assert read_sidecar(write_sidecar(tmp_path / "a.jpg", ["dog"])) == ("cat", "dog")


def test_a_prefix_that_is_declared_anew_farther_in_is_not_taken_for_the_outer_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg.xmp"
    path.write_text(
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="http://purl.org/dc/elements/1.1/" '
        'xmlns:core="http://purl.org/dc/elements/1.1/"><rdf:Description xmlns:dc="http://example.org/dc/"/></rdf:RDF>'
    )
    write_sidecar(tmp_path / "a.jpg", ["cat"])
    assert read_sidecar(path) == ("cat",)
    assert "<core:subject><rdf:Bag><rdf:li>cat</rdf:li></rdf:Bag></core:subject>" in path.read_text()


def test_the_longer_name_comes_first(tmp_path: Path) -> None:
    assert sidecar_of(tmp_path / "a.jpg").name == "a.jpg.xmp"
    (tmp_path / "a.xmp").touch()
    assert sidecar_of(tmp_path / "a.jpg").name == "a.xmp"
    (tmp_path / "a.jpg.xmp").touch()
    assert sidecar_of(tmp_path / "a.jpg").name == "a.jpg.xmp"


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
RDF = '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="http://purl.org/dc/elements/1.1/">'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{BOMB}<x>&b;</x>".encode(), "expected a sidecar without a document type, found one"),
        (f"{BOMB}<x>&b;</x>".encode("utf-16"), "expected a sidecar without a document type, found one"),
        (BY_HAND[:300].encode(), "expected XMP, but "),
        (b"", "expected XMP, but no element found"),
        (b"\xff\xd8\xff no text", "expected XMP, but "),
        (b'<?xml version="1.0" encoding="klingon"?><x/>', "expected XMP, but unknown encoding"),
        (b"<html/>", r"expected XMP \(x:xmpmeta with rdf:RDF\), found another document"),
        (b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>', r"expected XMP \(x:xmpmeta with rdf:RDF\), found another document"),
        (b"<a>" * 200 + b"</a>" * 200, "expected elements in at most 100 others, found more"),
        (
            f"{RDF}<rdf:Description><dc:subject>cat</dc:subject></rdf:Description></rdf:RDF>".encode(),
            "expected a list of tags in dc:subject, found a text",
        ),
        (
            f'{RDF}<rdf:Description dc:subject="cat"/></rdf:RDF>'.encode(),
            "expected a list of tags in dc:subject, found a text",
        ),
    ],
)
def test_what_is_no_sidecar_is_refused_and_kept(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg.xmp"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path}: {message}"):
        write_sidecar(tmp_path / "a.jpg", ["cat"])
    assert path.read_bytes() == content


def test_a_larger_file_than_any_sidecar_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sidecar(tmp_path / "a.jpg", ["cat"])
    monkeypatch.setattr(xmp, "LIMIT", 100)
    with pytest.raises(DataError, match="expected a sidecar of at most 100 bytes, found a larger one"):
        read_sidecar(path)


def test_tags_that_xml_has_no_way_to_write_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected tags of characters that XML allows, got '\\\\uffff'"):
        write_sidecar(tmp_path / "a.jpg", ["cat", "\uffff"])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none/a\.jpg\.xmp: expected to write a sidecar, but No such file"):
        write_sidecar(tmp_path / "none" / "a.jpg", ["cat"])
    with pytest.raises(DataError, match=r"a\.xmp: expected a sidecar, but No such file"):
        read_sidecar(tmp_path / "a.xmp")


@pytest.mark.parametrize("by_hand", [False, True])
def test_another_program_reads_them(by_hand: bool, tmp_path: Path) -> None:
    require_program("exiv2")
    if by_hand:
        # The program knows RDF by its usual prefix only.
        usual = re.sub(r"\br:", "rdf:", BY_HAND).replace("xmlns:r=", "xmlns:rdf=")
        (tmp_path / "a.jpg.xmp").write_text(usual, encoding="utf-8")
    path = write_sidecar(tmp_path / "a.jpg", ["cat", "traffic light"])
    done = subprocess.run(["exiv2", "-PXkv", str(path)], capture_output=True, text=True, check=True)
    found = {key: value.strip() for key, _, value in (line.partition(" ") for line in done.stdout.splitlines())}
    expected = "holiday, cat, traffic light" if by_hand else "cat, traffic light"
    assert found["Xmp.dc.subject"] == expected
    assert found["Xmp.digiKam.TagsList"] == "cat, traffic light"
    assert found["Xmp.lr.hierarchicalSubject"] == "cat, traffic light"
    assert found.get("Xmp.xmp.Rating", "") == ("4" if by_hand else "")
