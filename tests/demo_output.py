"""Reading what ``zcserver demo`` prints."""

import re


def cells(printed: str, label: str) -> list[str]:
    """The amounts in the row of the table that begins with ``label``: of files, and of memory."""
    row = re.search(rf"{re.escape(label)} +(\S+(?: \S+)?) {{2,}}(\S+(?: \S+)?)\s*$", printed, re.MULTILINE)
    assert row, printed
    return list(row.groups())
