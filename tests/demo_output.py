"""Reading what ``zcserver demo`` prints."""

import re


def cells(printed: str, label: str) -> list[str]:
    """The amounts in the row of the table that begins with ``label``: of files, of memory, of a topic."""
    row = re.search(rf"{re.escape(label)} {{2,}}(.*\S)", printed)
    assert row, printed
    return re.split(r" {2,}", row[1])
