"""Patterns of error messages: the argument, what was expected and what was found, whatever words are between them."""

import re

# Quoted names, options, shapes, numbers and identifiers: what a message is about, and not how it says it.
FACT = re.compile(
    r"""(?<!\w)'[^']*'(?!\w)|"[^"]*"|`[^`]*`|--[\w.-]+|\([\d, ]*\)|[\w./]*[\d_/.][\w./]*\w|\d+"""
    r"""|\b(?:None|True|False|nan|inf)\b"""
)
WORDS = ("expected", "got", "found")


def pinned(message: str) -> str:
    """Return a regular expression of what a refusal has to keep of a sentence.

    These are, in their order: the argument or file before the first colon, the words "expected" and "got" or "found",
    and each quoted text, option, number, shape and identifier. The words between them are free.

    Example:
        >>> pattern = pinned("width: expected a multiple of heads=3, got 100")
        >>> bool(re.fullmatch(pattern, "width: expected one that 3 heads divide, got 100"))
        True
        >>> [bool(re.fullmatch(pattern, other)) for other in (
        ...     "heads: expected a multiple of heads=3, got 100", "width: expected a multiple of heads=4, got 100",
        ...     "width: expected a multiple of heads=3, got 10", "width: a multiple of heads=3, got 100")]
        [False, False, False, False]
    """
    head, colon, rest = message.partition(": ")
    if not colon:
        head, rest = "", message
    facts = [match[0] for match in re.finditer(rf"{FACT.pattern}|\b(?:{'|'.join(WORDS)})\b", rest)]
    edges = [rf"(?<!\w){re.escape(fact)}(?!\w)" for fact in facts]
    return re.escape(head + colon) + "".join(f".*{edge}" for edge in edges) + ".*"
