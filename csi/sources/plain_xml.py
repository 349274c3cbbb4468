"""XML from untrusted servers, parsed as a stream.

Document types are refused, as their entities can expand to gigabytes.
"""

from __future__ import annotations

from typing import Protocol
from xml.parsers import expat


class XmlHandler(Protocol):
    """Callbacks for the elements of a document, in order; an exception from one ends the parsing."""

    def on_start_element(self, name: str, attributes: dict[str, str], /) -> None:
        """Handle the start of an element."""

    def on_end_element(self, name: str, /) -> None:
        """Handle the end of an element."""

    def on_text(self, text: str, /) -> None:
        """Handle some or all of the characters within an element."""


def create_parser(handler: XmlHandler, namespaces: bool = False) -> expat.XMLParserType:
    """Create a UTF-8 parser that calls `handler`.

    With `namespaces` names are "namespace name". `Parse` raises expat.ExpatError for invalid XML and
    ValueError for a document type.
    """
    # None turns the interning of names off, which would keep every name that a document invents.
    parser = expat.ParserCreate("utf-8", " ", None) if namespaces else expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _reject_doctype
    parser.StartElementHandler = handler.on_start_element
    parser.EndElementHandler = handler.on_end_element
    parser.CharacterDataHandler = handler.on_text
    return parser


def _reject_doctype(*_: object) -> None:
    raise ValueError("a document type of its own")
