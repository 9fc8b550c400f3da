"""Pure: no I/O, no clock, no logging.

What comes from a guest, or from any peer, made harmless for a terminal: a console may hold escape sequences that
retitle, recolour or answer for the user's terminal. Line ends, tabs and text pass; sequences are dropped whole.
"""

import codecs
import re
from dataclasses import dataclass, field

# ECMA-48: CSI sequences, strings (OSC, DCS, SOS, PM, APC) up to their terminator, two-character escapes.
_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"
    r"|\x1b[ -/]+[0-~]"
    r"|\x1b[0-Z\\`-~]"
)
_BEGUN = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]*\x1b?|[ -/]*)\Z")
_MAX_PENDING = 4096


def plain(text: str) -> str:
    """One line without control characters, for messages and tables."""
    cleaned = _SEQUENCE.sub("", text)
    return "".join(c if c.isprintable() else " " for c in cleaned).strip()


@dataclass
class ConsoleCleaner:
    """Takes a console's bytes piece by piece; a sequence or character cut between two pieces is still recognised."""

    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )
    _pending: str = ""

    def clean(self, data: bytes) -> str:
        """The text to print for these bytes; what may be half a sequence waits for the next piece."""
        text = self._pending + self._decoder.decode(data)
        begun = _BEGUN.search(_SEQUENCE.sub(_blank, text))
        if begun is not None and len(text) - begun.start() <= _MAX_PENDING:
            text, self._pending = text[: begun.start()], text[begun.start() :]
        else:
            self._pending = ""
        return _printable(_SEQUENCE.sub("", text))

    def rest(self) -> str:
        """What still waits at the end: no sequence came of it, so none is printed."""
        text, self._pending = self._pending + self._decoder.decode(b"", final=True), ""
        return _printable(_SEQUENCE.sub("", text))


def _blank(match: re.Match[str]) -> str:
    return " " * len(match[0])  # keeps positions


def _printable(text: str) -> str:
    text = text.replace("\r\n", "\n")
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
