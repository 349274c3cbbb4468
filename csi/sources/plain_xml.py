"""XML from strangers, as it comes: without document types, whose entities could make gigabytes of kilobytes."""

from __future__ import annotations

from typing import Protocol
from xml.parsers import expat


class Handler(Protocol):
    """What is told of a document's elements, in order; what it raises ends the parsing."""

    def start(self, name: str, attributes: dict[str, str], /) -> None:
        """An element begins."""

    def end(self, name: str, /) -> None:
        """An element ends."""

    def text(self, text: str, /) -> None:
        """Characters within an element, some or all of them."""


def plain_parser(handler: Handler, namespaces: bool = False) -> expat.XMLParserType:
    """A parser of UTF-8 that tells `handler`; with `namespaces` names are "namespace name". Its `Parse` raises expat.ExpatError for what is no
    XML, and ValueError for a document type."""
    # Without the interning of names, which would keep every one that a document makes up.
    parser = expat.ParserCreate("utf-8", " ", None) if namespaces else expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = handler.start, handler.end, handler.text
    return parser


def _refuse(*_: object) -> None:
    raise ValueError("a document type of its own")
