"""XMP sidecars: tags in a file beside each picture, where photo programs look for them."""

import re
from collections.abc import Iterable
from pathlib import Path
from xml.dom import Node, minidom
from xml.parsers import expat

from pvlr.data.batch import DataError
from pvlr.files import write_atomically

__all__ = ["read_sidecar", "sidecar_of", "write_sidecar"]

META, RDF = "adobe:ns:meta/", "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC, DIGIKAM = "http://purl.org/dc/elements/1.1/", "http://www.digikam.org/ns/1.0/"
LIGHTROOM = "http://ns.adobe.com/lightroom/1.0/"
XMLNS = "http://www.w3.org/2000/xmlns/"
PREFIXES = {RDF: "rdf", DC: "dc", DIGIKAM: "digiKam", LIGHTROOM: "lr"}
# The property that each program reads, and the kind of list it is.
PROPERTIES = ((DC, "subject", "Bag"), (DIGIKAM, "TagsList", "Seq"), (LIGHTROOM, "hierarchicalSubject", "Bag"))
LEVELS = {DIGIKAM: ("|", "/"), LIGHTROOM: ("/", "|")}
"""What separates the levels of a name elsewhere, and what does for the program."""
EMPTY = f"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="{META}">
 <rdf:RDF xmlns:rdf="{RDF}">
  <rdf:Description rdf:about="" xmlns:dc="{DC}" xmlns:digiKam="{DIGIKAM}" xmlns:lr="{LIGHTROOM}"></rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
""".encode()
LIMIT, DEEPEST = 16 * 2**20, 100
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def sidecar_of(picture: Path) -> Path:
    """Return the sidecar of a picture: the one that is there, ``a.jpg.xmp`` before ``a.xmp``, else ``a.jpg.xmp``.

    digiKam and darktable write the first name, Lightroom the second, which belongs to every ``a`` with another ending
    as well.

    Example:
        >>> sidecar_of(Path("a.jpg")).name
        'a.jpg.xmp'
    """
    full, short = picture.with_name(f"{picture.name}.xmp"), picture.with_suffix(".xmp")
    return short if short.exists() and not full.exists() else full


def write_sidecar(picture: Path, names: Iterable[str]) -> Path:
    """Add tags to the sidecar of a picture, which is made where there is none; the picture is not touched.

    Tags go to ``dc:subject``, ``digiKam:TagsList`` and ``lr:hierarchicalSubject``. All else in the file stays, tags
    that are there too; the file is replaced as a whole, or not at all. A ``/`` or ``|`` in a name separates levels:
    digiKam is given ``animal/dog``, Lightroom ``animal|dog``, and ``dc:subject`` has the name as it is.

    Args:
        picture: The picture's file.
        names: The tags.

    Returns:
        The sidecar.

    Raises:
        DataError: where the sidecar that is there is no XMP, or cannot be read or written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_sidecar(Path(folder, "a.jpg"), ["cat"])
        ...     read_sidecar(write_sidecar(Path(folder, "a.jpg"), ["dog", "cat"]))
        ('cat', 'dog')
    """
    path, tags = sidecar_of(picture), tuple(dict.fromkeys(names))
    for tag in tags:
        if NO_XML.search(tag):
            raise DataError(f"{path}: expected tags of characters that XML allows, got {tag!r}")
    exists = path.exists()
    document = _parsed(path) if exists else minidom.parseString(EMPTY)
    changed = not exists
    for namespace, name, kind in PROPERTIES:
        items = _list_of(document, path, namespace, name, kind)
        there = set(_items(items))
        others, own = LEVELS.get(namespace, ("/", "/"))
        for tag in dict.fromkeys(tag.replace(others, own) for tag in tags):
            if tag not in there:
                _added(items, RDF, "li").appendChild(document.createTextNode(tag))
                changed = True
    if changed:
        try:
            write_atomically(path, document.toxml(encoding="UTF-8") + b"\n")
        except OSError as err:
            raise DataError(f"{path}: expected to write a sidecar, but {err.strerror or err}") from None
    return path


def read_sidecar(path: Path) -> tuple[str, ...]:
    """Return the tags in ``dc:subject`` of a sidecar.

    Raises:
        DataError: where it is no XMP, or cannot be read.
    """
    return tuple(tag for found in _parsed(path).getElementsByTagNameNS(DC, "subject") for tag in _items(found))


def _parsed(path: Path) -> minidom.Document:
    """Parse a sidecar, which keeps its prefixes, comments and processing instructions."""
    try:
        with path.open("rb") as file:
            content = file.read(LIMIT + 1)
    except OSError as err:
        raise DataError(f"{path}: expected a sidecar, but {err.strerror or err}") from None
    if len(content) > LIMIT:
        raise DataError(f"{path}: expected a sidecar of at most {LIMIT:,} bytes, found a larger one")
    try:
        _require_plain(path, content)
        document = minidom.parseString(content)
    except (expat.ExpatError, LookupError, ValueError) as err:
        if isinstance(err, DataError):
            raise
        raise DataError(f"{path}: expected XMP, but {err}") from None
    if _rdf(document) is None:
        raise DataError(f"{path}: expected XMP (x:xmpmeta with rdf:RDF), found another document")
    return document


def _require_plain(path: Path, content: bytes) -> None:
    """Refuse document types, which may define entities, and elements nested deeper than any program writes them."""
    parser, depth = expat.ParserCreate(), 0

    def doctype(*about: object) -> None:
        raise DataError(f"{path}: expected a sidecar without a document type, found one")

    def start(name: str, attributes: object) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise DataError(f"{path}: expected elements in at most {DEEPEST} others, found more")

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1

    parser.StartDoctypeDeclHandler = doctype
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.Parse(content, True)


def _rdf(document: minidom.Document) -> minidom.Element | None:
    root = document.documentElement
    if root is None or _is(root, RDF, "RDF"):
        return root
    if not (_is(root, META, "xmpmeta") or _is(root, META, "xapmeta")):
        return None
    return next(iter(_children(root, RDF, "RDF")), None)


def _list_of(document: minidom.Document, path: Path, namespace: str, name: str, kind: str) -> minidom.Element:
    """Return the list of a property, made where it is absent."""
    rdf = _rdf(document)
    if rdf is None:
        raise DataError(f"{path}: expected XMP (x:xmpmeta with rdf:RDF), found another document")
    descriptions = _children(rdf, RDF, "Description")
    for description in descriptions:
        if description.hasAttributeNS(namespace, name):
            raise DataError(f"{path}: expected a list of tags in {PREFIXES[namespace]}:{name}, found a text")
        for found in _children(description, namespace, name):
            lists = [part for any_kind in ("Bag", "Seq", "Alt") for part in _children(found, RDF, any_kind)]
            if lists:
                return lists[0]
            if _text(found).strip():
                raise DataError(f"{path}: expected a list of tags in {PREFIXES[namespace]}:{name}, found a text")
            return _added(found, RDF, kind)
    if descriptions:
        description = descriptions[0]
    else:
        description = _added(rdf, RDF, "Description")
        description.setAttributeNS(RDF, f"{_prefix(description, RDF)}:about", "")
    return _added(_added(description, namespace, name), RDF, kind)


def _added(parent: minidom.Element, namespace: str, name: str) -> minidom.Element:
    """Append an element, by the prefix that is declared there for its namespace, else with a declaration of its own."""
    prefix = _prefix(parent, namespace)
    element = minidom.Document().createElementNS(namespace, f"{prefix or PREFIXES[namespace]}:{name}")
    if prefix is None:
        element.setAttributeNS(XMLNS, f"xmlns:{PREFIXES[namespace]}", namespace)
    parent.appendChild(element)
    return element


def _prefix(element: minidom.Element, namespace: str) -> str | None:
    """Return a prefix that means a namespace in an element."""
    hidden: set[str] = set()
    place: Node | None = element
    while isinstance(place, minidom.Element):
        for name, value in place.attributes.items():
            prefix = name.removeprefix("xmlns:")
            if prefix != name and value == namespace and prefix not in hidden:
                return prefix
        hidden.update(name.removeprefix("xmlns:") for name, _ in place.attributes.items())
        place = place.parentNode
    return None


def _children(parent: minidom.Element, namespace: str, name: str) -> list[minidom.Element]:
    return [child for child in parent.childNodes if isinstance(child, minidom.Element) and _is(child, namespace, name)]


def _is(element: minidom.Element | None, namespace: str, name: str) -> bool:
    return element is not None and (element.namespaceURI, element.localName) == (namespace, name)


def _items(parent: minidom.Element) -> list[str]:
    return [_text(item) for item in parent.getElementsByTagNameNS(RDF, "li")]


def _text(element: minidom.Element) -> str:
    return "".join(child.data for child in element.childNodes if isinstance(child, minidom.Text))
