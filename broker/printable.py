"""Text from outside made fit for terminals, logs and error messages: what would act there is written out.

Answers of a model, names in files of others and messages of libraries can hold escape sequences that move the cursor,
set a window's title or write to the clipboard, signs that reverse the order of what follows, and newlines that begin
what looks like another record.
"""

from __future__ import annotations

import unicodedata


def printable(text: str, *, lines: bool = False) -> str:
    """`text` with everything that is not shown as a sign of its own written as `\\uXXXX`, as JSON writes it.

    These are the control characters (C0, C1, delete), the signs that only format (of direction, joining or no width),
    line and paragraph separators, lone surrogates, and code points without a meaning. Printable text is unchanged, and
    JSON remains JSON of the same value. `lines` keeps newlines and tabs.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or (lines and one in "\n\t") or unicodedata.category(one) == "Zs" else _escaped(one)
        for one in text
    )


def _escaped(one: str) -> str:
    code = ord(one)
    if code < 1 << 16:
        return f"\\u{code:04x}"
    high, low = divmod(code - (1 << 16), 1 << 10)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


def one_line(text: str) -> str:
    """`text` as one printable line, each run of white space one space."""
    return printable(" ".join(text.split()))


def indented(text: str) -> str:
    """`text` as printable lines that all begin with four spaces, so that none can pass for a line around it."""
    return "\n".join("    " + printable(line, lines=True) for line in text.splitlines())
