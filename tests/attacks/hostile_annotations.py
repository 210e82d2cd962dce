"""Annotations, tables and folders that are broken, hostile or make no sense."""

import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from attack import Act, Attack
from hostile_pictures import encoded
from hostile_voc import VOC

from pvlr.core.labels import LabelSet
from pvlr.data.dataset import LabelledImages
from pvlr.data.readers.coco import MAX_JSON_BYTES, read_coco
from pvlr.data.readers.folders import read_folders
from pvlr.data.readers.lines import MAX_TABLE_BYTES
from pvlr.data.readers.nuswide import read_nuswide
from pvlr.data.readers.table import read_table

LABELS = LabelSet(("cat", "dog"))
PICTURE = encoded("PNG")


IMAGE = {"id": 1, "file_name": "1.png"}
CATEGORY = {"id": 1, "name": "cat"}
OBJECT = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 0}


def coco_text(images: object = (IMAGE,), categories: object = (CATEGORY,), annotations: object = (OBJECT,)) -> str:
    return json.dumps({"images": images, "categories": categories, "annotations": annotations})


def coco(
    name: str, content: str | bytes, outcome: str, *, size: int | None = None, labels: LabelSet | None = None
) -> Attack:
    def make(folder: Path) -> Act:
        (folder / "images").mkdir()
        (folder / "images" / "1.png").write_bytes(PICTURE)
        (folder / "images" / "out.png").symlink_to("/etc/passwd")
        path = folder / "x.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if size is not None:
            os.truncate(path, size)
        return lambda: read_coco(folder / "images", path, labels=labels).summary()

    return Attack(f"COCO: {name}", make, outcome if outcome.startswith("read") else f"refused: x.json: {outcome}")


def boxed(box: object) -> str:
    return coco_text(annotations=[{**OBJECT, "bbox": box}])


COCO = (
    coco("2 GB and a byte", b"{", "expected annotations of at most 2,000,000,000 bytes", size=MAX_JSON_BYTES + 1),
    coco("cut short", coco_text()[:-5], "expected annotations as JSON, but "),
    coco("in UTF-16", coco_text().encode("utf-16"), "line 1: expected annotations in UTF-8, found other bytes"),
    coco(
        "100,000 brackets within each other", "[" * 100_000, "expected annotations as JSON, found far too many brackets"
    ),
    coco(
        "number of 5,000 digits",
        coco_text(images=[1]).replace("1", "1" * 5_000, 1),
        "expected annotations as JSON, but ",
    ),
    Attack(
        "COCO: name longer than a file's may be",
        coco("", coco_text(images=[{"id": 1, "file_name": "x" * 300}]), "").make,
        f"refused: images/{'x' * 300}: expected the picture of x.json: image 1, but File name too long",
    ),
    coco(
        "40,000 keys, one of them twice",
        f"{{{', '.join(f'{chr(34)}{key}{chr(34)}: 0' for key in (*range(40_000), 39_999))}}}",
        "expected every key of an object once, found '39999' twice",
    ),
    coco("the same key twice", '{"images": [], "images": []}', "expected every key of an object once, found 'images'"),
    coco(
        "the same id twice",
        coco_text(images=[IMAGE, IMAGE]),
        "images[1]: expected every image once, found the id 1 again",
    ),
    coco(
        "the same file twice",
        coco_text(images=[IMAGE, {"id": 2, "file_name": "./1.png"}]),
        "images[1]: expected every file once, found '1.png' again",
    ),
    coco(
        "the same category twice",
        coco_text(categories=[CATEGORY, CATEGORY]),
        "categories[1]: expected every category on",
    ),
    coco(
        "object of no image",
        coco_text(annotations=[{**OBJECT, "image_id": 9}]),
        "annotations[0]: expected the id of one of",
    ),
    coco(
        "object of no category",
        coco_text(annotations=[{**OBJECT, "category_id": 9}]),
        "annotations[0]: expected the id of one of the",
    ),
    coco(
        "label that is no category",
        coco_text(),
        "categories: unknown label 'cta', the nearest",
        labels=LabelSet(("cta",)),
    ),
    coco("box of a negative size", boxed([5, 5, -1, 3]), "annotations[0]: expected 'bbox' to have no negative size"),
    coco(
        "box that is no number",
        boxed([0, 0, float("nan"), 3]),
        "annotations[0]: expected 'bbox' to be four finite numbers",
    ),
    coco(
        "box of three numbers",
        boxed([0, 0, 3]),
        "annotations[0]: expected 'bbox' to be four finite numbers, found [0, 0",
    ),
    coco("box of words", boxed("all"), "annotations[0]: expected 'bbox' to be four finite numbers, found 'all'"),
    coco(
        "crowd: 2", coco_text(annotations=[{**OBJECT, "iscrowd": 2}]), "annotations[0]: expected 'iscrowd' to be 0 or 1"
    ),
    *(
        coco(
            f"path {path}",
            coco_text(images=[{"id": 1, "file_name": path}]),
            f"images[0]: expected a picture inside its folder, found {path!r}",
        )
        for path in ("../1.png", "/etc/passwd", "a/../../1.png")
    ),
    coco(
        "path of Windows",
        coco_text(images=[{"id": 1, "file_name": "C:\\1.png"}]),
        "images[0]: expected a picture's path w",
    ),
    coco(
        "name with a line end",
        coco_text(categories=[{"id": 1, "name": "a\nb"}]),
        "categories[0]: expected the name of a ca",
    ),
    Attack(
        "COCO: picture leads out",
        coco("", coco_text(images=[{"id": 1, "file_name": "out.png"}]), "").make,
        "refused: images/out.png: expected the picture inside images, found a link to /etc/passwd",
    ),
)


def table(name: str, content: str | bytes, outcome: str, *, ending: str = "csv", size: int | None = None) -> Attack:
    def make(folder: Path) -> Act:
        (folder / "1.png").write_bytes(PICTURE)
        (folder / "out.png").symlink_to("/etc/passwd")
        (folder / "folder.png").mkdir()
        path = folder / f"x.{ending}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if size is not None:
            os.truncate(path, size)
        return lambda: read_table(folder, path, labels=LABELS).summary()

    said = outcome if outcome.startswith(("out.png", "xxx", "folder")) else f"x.{ending}: {outcome}"
    return Attack(f"{ending.upper()}: {name}", make, f"refused: {said}")


HEAD = "file,labels\n"
TABLES = (
    table("1 GB and a byte", HEAD, "expected a table of at most 1,000,000,000 bytes", size=MAX_TABLE_BYTES + 1),
    table(
        "path out of the folder",
        f"{HEAD}../1.png,cat",
        "line 2: expected a picture inside its folder, found '../1.png'",
    ),
    table(
        "absolute path", f"{HEAD}/etc/passwd,cat", "line 2: expected a picture inside its folder, found '/etc/passwd'"
    ),
    table("picture leads out", f"{HEAD}out.png,cat", "out.png: expected the picture inside "),
    table(
        "the same picture twice", f"{HEAD}1.png,cat\n./1.png,dog", "line 3: expected every picture once, found '1.png'"
    ),
    table("unknown label", f"{HEAD}1.png,cta", "line 2: unknown label 'cta', the nearest known one is 'cat'"),
    table(
        "quote left open", f'{HEAD}1.png,"cat\n', "line 2: expected comma-separated values, but unexpected end of data"
    ),
    table("NUL byte", f"{HEAD}1.png,c\0at", "line 2: expected a table, found a NUL byte"),
    table("UTF-16", f"{HEAD}1.png,cat".encode("utf-16"), "line 1: expected a table in UTF-8, found other bytes"),
    table(
        "cell of 200 kB", f"{HEAD}1.png,{'x' * 200_000}", "line 2: expected comma-separated values, but field larger"
    ),
    table(
        "name longer than a file's may be", f"{HEAD}{'x' * 300},cat", f"{'x' * 300}: expected the picture of x.csv: "
    ),
    table(
        "folder for a picture", f"{HEAD}folder.png,cat", "folder.png: expected the picture of x.csv: line 2, found a f"
    ),
    table(
        "name that is not shown as it is", f"{HEAD}a\u202egpj.png,cat", "line 2: expected the name of a picture with"
    ),
    table("name of two lines", f"{HEAD}a\u2028b.png,cat", "line 2: expected the name of a picture without control ch"),
    table("name that paints the terminal", f"{HEAD}a\x9b31m.png,cat", "line 2: expected the name of a picture without"),
    table("empty label", f"{HEAD}1.png,cat;\n", "line 2: expected a label between any two ';', found an empty name"),
    table(
        "20,000 columns, one of them twice",
        f"{HEAD[:-1]},{','.join(map(str, (*range(20_000), 19_999)))}\n",
        "line 1: expected every column once, found '19999' twice",
    ),
    table(
        "position of 4,000 digits",
        f'{{"file": "1.png", "labels": [{"9" * 4_000}]}}',
        "line 1: expected the position of a label from 0 to 1, found 999",
        ending="jsonl",
    ),
    table(
        "40,000 keys, one of them twice",
        f"{{{', '.join(f'{chr(34)}{key}{chr(34)}: 0' for key in (*range(40_000), 39_999))}}}",
        "line 1: expected every key once, found '39999' twice",
        ending="jsonl",
    ),
    table(
        "40,000 keys, none of them right",
        f"{{{', '.join(f'{chr(34)}{key}{chr(34)}: 0' for key in range(40_000))}}}",
        "line 1: expected the keys 'file' and 'labels', found '0', '1', '2', '3', '4', '5', '6', '7' and 39992 more",
        ending="jsonl",
    ),
    table("row without labels' cell", f"{HEAD}1.png\n", "line 2: expected 2 values, one per column, found 1"),
    table(
        "brackets", "[" * 100_000, "line 1: expected JSON, found far too many brackets within brackets", ending="jsonl"
    ),
    table(
        "the same key twice", '{"file": "1.png", "file": "2"}', "line 1: expected every key once, found", ending="jsonl"
    ),
    table(
        "half a character", '{"file": "\\ud800", "labels": []}', "line 1: expected the name of a pict", ending="jsonl"
    ),
    table(
        "label of another kind", '{"file": "1.png", "labels": [{}]}', "line 1: expected the name of a", ending="jsonl"
    ),
)


def lists(name: str, content: str, outcome: str) -> Attack:
    def make(folder: Path) -> Act:
        (folder / "nus_wid_data.csv").write_text(f"filepath,label,split_name\n{content}\n")
        return lambda: read_nuswide(folder, lists="asl", check_files=False).summary()

    return Attack(f"NUS-WIDE: {name}", make, f"refused: nus_wid_data.csv: line 2: {outcome}")


def tree(name: str, put: Callable[[Path], object], outcome: str) -> Attack:
    def make(folder: Path) -> Act:
        (folder / "root" / "cat").mkdir(parents=True)
        (folder / "root" / "cat" / "1.png").write_bytes(PICTURE)
        put(folder / "root" / "cat")
        return lambda: read_folders(folder / "root").summary()

    return Attack(f"folders: {name}", make, f"refused: {outcome}")


def pipe(name: str, file: str, read: Callable[[Path], LabelledImages], what: str) -> Attack:
    def make(folder: Path) -> Act:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(folder / file)
        return lambda: read(folder).summary()

    return Attack(f"{name} is a pipe", make, f"refused: {file}: expected {what}, found a pipe, socket or device")


def nested(folder: Path) -> Act:
    """Folders deeper within each other than functions may call each other; few may, so that pytest can delete them."""
    deep = folder.joinpath("root", "cat", *["d"] * 300)
    deep.mkdir(parents=True)
    (deep / "1.png").touch()

    def act() -> str:
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(len(inspect.stack(0)) + 150)
        try:
            return read_folders(folder / "root").summary()
        finally:
            sys.setrecursionlimit(before)

    return act


REST = (
    pipe("table", "x.csv", lambda folder: read_table(folder, folder / "x.csv"), "a table"),
    pipe("table of objects", "x.jsonl", lambda folder: read_table(folder, folder / "x.jsonl"), "a table"),
    pipe("COCO's file", "x.json", lambda folder: read_coco(folder, folder / "x.json"), "annotations"),
    pipe("NUS-WIDE's table", "nus_wid_data.csv", lambda folder: read_nuswide(folder, lists="asl"), "a table"),
    pipe("NUS-WIDE's list", "ImageList/TrainImagelist.txt", read_nuswide, "a list of pictures"),
    Attack("folders: 300 within each other, where calls are less deep", nested, "read: root: 1 images, 1 labels"),
    tree(
        "path of 1,100 characters",
        lambda cat: ((deep := cat.joinpath(*["d" * 200] * 5)).mkdir(parents=True), (deep / f"{'d' * 100}.png").touch()),
        "root/cat: expected the name of a picture in at most 1,000 characters, found 1,1",
    ),
    tree(
        "link to itself", lambda cat: (cat / "2.png").symlink_to("2.png"), "root/cat/2.png: expected a folder or a pi"
    ),
    tree(
        "name that is not shown as it is",
        lambda cat: (cat / "a\u202egpj.png").touch(),
        "root/cat: expected the name of a file or folder without control characters, found 'a\\u202egpj.png'",
    ),
    lists(
        "code for a list", "1.jpg,__import__('os').getcwd(),train", "expected 'label' to be a list such as ['sky', 'wa"
    ),
    lists(
        "path out of the folder", "../1.jpg,\"['sky']\",train", "expected a picture inside its folder, found '../1.jpg'"
    ),
    lists(
        "split of another name", "1.jpg,\"['sky']\",all", "expected 'split_name' to be 'train' or 'val', found 'all'"
    ),
    tree(
        "link around for ever",
        lambda cat: (cat / "up").symlink_to(cat),
        "root/cat/up: expected folders and pictures, f",
    ),
    tree(
        "picture leads out",
        lambda cat: (cat / "2.png").symlink_to("/etc/passwd"),
        "root/cat/2.png: expected the picture inside root, found a link to /etc/passwd",
    ),
    tree("label leads out", lambda cat: (cat.parent / "out").symlink_to("/usr"), "root/out/"),
    tree(
        "pipe",
        lambda cat: os.mkfifo(cat / "2.png"),
        "root/cat/2.png: expected a picture (.jpg, .jpeg, .jpe, .jfif, .png, .webp, .bmp",
    ),
    tree(
        "other file",
        lambda cat: (cat / "a.exe").touch(),
        "root/cat/a.exe: expected a picture (.jpg, .jpeg, .jpe, .jfif, .png, .webp,",
    ),
    tree(
        "name that paints the terminal",
        lambda cat: (cat / "\x1b[31m.png").touch(),
        "root/cat: expected the name of a file",
    ),
    tree(
        "name of two lines",
        lambda cat: (cat / "a\nb").touch(),
        "root/cat: expected the name of a file or folder without c",
    ),
    tree(
        "name of other bytes",
        lambda cat: open(os.fsencode(cat) + b"/\xff.png", "w").close(),
        "root/cat: expected the name",
    ),
    tree(
        "label that is a file",
        lambda cat: (cat.parent / "dog").touch(),
        "root/dog: expected only folders named after labe",
    ),
)

ANNOTATIONS = (*VOC, *COCO, *TABLES, *REST)
