"""Attacks on the files that Pascal VOC is read from: XML and lists of pictures."""

import os
from collections.abc import Callable
from pathlib import Path

from attack import Act, Attack
from hostile_pictures import encoded

from pvlr.core.labels import LabelSet
from pvlr.data.readers.voc import read_voc

LABELS = LabelSet(("cat", "dog"))
PICTURE = encoded("PNG")


def annotation(name: str = "cat", box: str = "1 1 9 9", rest: str = "", head: str = "") -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box.split(" "), strict=False)
    inner = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"{head}<annotation><object><name>{name}</name>{rest}<bndbox>{inner}</bndbox></object></annotation>"


ENTITY = '<!DOCTYPE a [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;&lol;&lol;">]>'
EXTERNAL = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
SIZE = "<size><width>48</width><height>40</height></size>"


def voc_folder(folder: Path) -> Path:
    home = folder / "VOC2007"
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (home / part).mkdir(parents=True)
    (home / "ImageSets/Main/trainval.txt").write_text("1\n")
    (home / "JPEGImages/1.jpg").write_bytes(PICTURE)
    (home / "Annotations/1.xml").write_text(annotation())
    return home


def voc(name: str, change: Callable[[Path], object], outcome: str) -> Attack:
    def make(folder: Path) -> Act:
        change(voc_folder(folder))
        return lambda: read_voc(folder, train=True).summary()

    return Attack(f"VOC: {name}", make, outcome)


def xml(name: str, content: str | bytes, outcome: str) -> Attack:
    content = content if isinstance(content, bytes) else content.encode()
    where = "VOC2007/Annotations/1.xml: " if not outcome.startswith("read") else ""
    said = outcome if outcome.startswith("read") else f"refused: {where}{outcome}"
    return voc(name, lambda home: (home / "Annotations/1.xml").write_bytes(content), said)


def listed(name: str, content: bytes, outcome: str) -> Attack:
    return voc(
        name,
        lambda home: (home / "ImageSets/Main/trainval.txt").write_bytes(content),
        f"refused: VOC2007/ImageSets/Main/trainval.txt: {outcome}",
    )


def instead(path: str, put: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return a function that puts something in the place of a file."""

    def change(home: Path) -> None:
        (home / path).unlink()
        put(home / path)

    return change


VOC = (
    xml("entities", annotation("&lol2;", head=ENTITY), "expected an annotation without document type and entities"),
    xml("entity that is a file", annotation("&x;", head=EXTERNAL), "expected an annotation without document type and"),
    xml("entities in UTF-16", annotation(head=ENTITY).encode("utf-16"), "line 1: expected an annotation in UTF-8"),
    xml(
        "entities in UTF-16 without mark",
        annotation(head=ENTITY).encode("utf-16-le"),
        "line 1: expected an annotation, f",
    ),
    xml("UTF-7", annotation(head='<?xml version="1.0" encoding="utf-7"?>'), "read: VOC2007 trainval: 1 images"),
    xml("1 MB and a byte", b" " * 1_000_001, "expected an annotation of at most 1,000,000 bytes, found more"),
    xml(
        "100,000 elements within each other",
        "<a>" * 100_000 + "</a>" * 100_000,
        "expected the element <annotation>, found",
    ),
    xml("cut short", annotation()[:-9], "expected well-formed XML, but "),
    xml("other content", "<html/>", "expected the element <annotation>, found 'html'"),
    xml("object without a name", annotation(" "), "expected every <object> to have a <name>, found one without"),
    xml(
        "name of 2,000 characters", annotation("x" * 2_000), "expected the name of a label in at most 1,000 characters"
    ),
    xml("name with a line end", annotation("a\nb"), "expected the name of a label without control characters, found"),
    xml("name that is not shown as it is", annotation("a\u202eb"), "expected the name of a label without control char"),
    xml("two names", annotation("cat</name><name>dog"), "expected <name> once in <object>, found it 2 times"),
    xml(
        "easy and difficult",
        annotation(rest="<difficult>0</difficult><difficult>1</difficult>"),
        "expected <difficult> once in <object>, found it 2 times",
    ),
    xml(
        "two ends of a box",
        annotation().replace("</bndbox>", "<xmax>7</xmax></bndbox>"),
        "'cat': expected <xmax> once in <bndbox>, found it 2 times",
    ),
    xml("two sizes", annotation().replace("<object>", f"{SIZE}{SIZE}<object>"), "expected <size> once in <annotation>"),
    xml("element's name of 900 kB", f"<{'a' * 900_000}/>", "expected the element <annotation>, found 'aaa"),
    xml(
        "element's name that paints the terminal",
        '<annotation xmlns="a&#10;\x9b31m"/>',
        "expected the element <annotation>, found '{a\\n\\x9b31m}annotation'",
    ),
    xml("unknown name", annotation("persn"), "unknown label 'persn', the nearest known one is 'person'"),
    xml(
        "difficult: 7",
        annotation(rest="<difficult>7</difficult>"),
        "expected <difficult> of 'cat' to be 0 or 1, true or false, yes or no, or Unspecified, found '7'",
    ),
    xml("box without a side", annotation(box="1 1 9"), "'cat': expected <ymax> to be a finite number, found ''"),
    xml("box of words", annotation(box="1 a 9 9"), "'cat': expected <ymin> to be a finite number, found 'a'"),
    xml("box without end", annotation(box="1 1 inf 9"), "'cat': expected <xmax> to be a finite number, found 'inf'"),
    xml("box inside out", annotation(box="9 1 1 9"), "'cat': expected 0 <= <xmin> <= <xmax>, found 9 and 1"),
    xml("box at negative places", annotation(box="1 -5 9 9"), "'cat': expected 0 <= <ymin> <= <ymax>, found -5 and 9"),
    xml(
        "box beside the picture",
        annotation(box="60 1 70 9").replace("<object>", f"{SIZE}<object>"),
        "'cat': expected <xmin> within the picture's <width> of 48, found 60",
    ),
    listed("the same picture twice", b"1\n1\n", "line 2: expected every picture once, found '1' twice"),
    listed("path out of the folder", b"../../1\n", "line 1: expected a picture inside its folder, found '../../1'"),
    listed(
        "name with a space",
        b"1\n1 2\n",
        "line 2: expected a name, alone or with -1, 0 or 1, found '1 2' and no annotation of '1 2'",
    ),
    listed(
        "name of two lines", "1\u20282\n".encode(), "line 1: expected the name of a picture without control characters"
    ),
    listed("list with a NUL byte", b"1\0\n", "line 1: expected a list of pictures, found a NUL byte"),
    listed("list in UTF-16", "1\n".encode("utf-16"), "line 1: expected a list of pictures in UTF-8"),
    voc(
        "missing picture",
        instead("JPEGImages/1.jpg", lambda path: None),
        "refused: VOC2007/JPEGImages/1.jpg: expected the picture of '1', found no such file",
    ),
    voc(
        "missing annotation",
        instead("Annotations/1.xml", lambda path: None),
        "the annotation of '1', found no such file",
    ),
    voc("annotation is a pipe", instead("Annotations/1.xml", os.mkfifo), "the annotation of '1', found a pipe, sock"),
    voc("picture is a folder", instead("JPEGImages/1.jpg", Path.mkdir), "the picture of '1', found a folder"),
    voc(
        "list is a pipe",
        instead("ImageSets/Main/trainval.txt", os.mkfifo),
        "trainval.txt: expected a list of pictures, found a pipe, socket or device",
    ),
    voc(
        "labels are a pipe",
        lambda home: os.mkfifo(home / "labels.json"),
        "refused: VOC2007/labels.json: expected a label set, found a pipe, socket or device",
    ),
    voc(
        "name longer than a file's may be",
        lambda home: (home / "ImageSets/Main/trainval.txt").write_text("x" * 300),
        f"the annotation of {'x' * 300!r}, but File name too long",
    ),
    voc(
        "annotation leads out",
        instead("Annotations/1.xml", lambda path: path.symlink_to("/etc/passwd")),
        "1.xml: expected the annotation inside VOC2007/Annotations, found a link to /etc/passwd",
    ),
    voc(
        "picture leads out",
        instead("JPEGImages/1.jpg", lambda path: path.symlink_to("/etc/passwd")),
        "1.jpg: expected the picture inside VOC2007/JPEGImages, found a link to /etc/passwd",
    ),
    voc(
        "folder of pictures lies elsewhere",
        lambda home: ((home / "JPEGImages").rename(home / "other"), (home / "JPEGImages").symlink_to(home / "other")),
        "read: VOC2007 trainval: 1 images",
    ),
)
