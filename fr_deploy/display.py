"""Names from a file system, safe to show: they may hold line breaks, escapes or invalid UTF-8."""


def printable(text: str) -> str:
    """The text on one line, with what cannot be shown as escapes (a line break becomes \\\\n)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
