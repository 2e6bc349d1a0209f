"""Text of any origin in one line of a terminal or a log."""

import re

# Also what Python's splitlines takes for an end, and what tells a terminal to move or to colour.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def one_line(text: str) -> str:
    r"""Show each control character as Python writes it, such as a newline in a file's name as ``\n``."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
