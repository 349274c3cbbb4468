"""XML from strangers, as it comes: without document types, whose entities could make gigabytes of kilobytes."""

from __future__ import annotations

from typing import Protocol
from xml.parsers import expat


class XmlHandler(Protocol):
    """What is told of a document's elements, in order; what it raises ends the parsing."""

    def on_start_element(self, name: str, attributes: dict[str, str], /) -> None:
        """An element begins."""

    def on_end_element(self, name: str, /) -> None:
        """An element ends."""

    def on_text(self, text: str, /) -> None:
        """Characters within an element, some or all of them."""


def create_parser(handler: XmlHandler, namespaces: bool = False) -> expat.XMLParserType:
    """A parser of UTF-8 that tells `handler`; with `namespaces` names are "namespace name". Its `Parse` raises expat.ExpatError for what is no
    XML, and ValueError for a document type."""
    # Without the interning of names, which would keep every one that a document makes up.
    parser = expat.ParserCreate("utf-8", " ", None) if namespaces else expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _reject_doctype
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = (
        handler.on_start_element,
        handler.on_end_element,
        handler.on_text,
    )
    return parser


def _reject_doctype(*_: object) -> None:
    raise ValueError("a document type of its own")
