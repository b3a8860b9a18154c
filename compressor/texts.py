"""What other libraries say, made fit for a report: one line, of bounded length, without the colours of a terminal."""

import re

# Of a message as a whole: what nobody reads to the end is a dump of somebody's graph, not a reason.
LONGEST = 8000
# Of what one error of another library says inside a sentence.
LONGEST_REASON = 400
# ECMA-48: CSI sequences (colours, cursor), OSC strings (titles, links) up to BEL or ST, and other two-byte escapes.
_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]?")
# Control characters that are no white space: they ring, erase or overwrite.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")


def plain(text: str) -> str:
    """`text` without terminal escapes and control characters; line breaks and tabs stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def bounded(text: str, longest: int = LONGEST) -> str:
    """`text`, cut to `longest` (>= 4) characters where it is longer, the last three being dots then."""
    return text if len(text) <= longest else f"{text[: longest - 3].rstrip()}..."


def first_said(error: BaseException) -> str:
    """The first line of what `error` says, plain, bounded and without its full stop; its type where it says nothing."""
    lines = (line.strip() for line in plain(str(error)).splitlines())
    return bounded(next(filter(None, lines), type(error).__name__).rstrip("."), LONGEST_REASON)
