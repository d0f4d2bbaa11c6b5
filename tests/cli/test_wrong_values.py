"""Values that no option can have: refused before anything is done, in words of ours."""

import pytest

from tests.cli.commands import failing

URL = "zc://127.0.0.1:1/nothing"  # nobody is asked


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("get -j 0", "'-j' / '--jobs': '0' is no whole number from 1 to 64."),
        ("get -j 65", "'65' is no whole number from 1 to 64."),
        ("get -j many", "'many' is no whole number from 1 to 64."),
        ("sub --count 0", "'--count': '0' is no whole number from 1 on."),
        ("sub --policy foo", "'--policy': 'foo' is not one of block, drop-oldest, latest, disconnect."),
        ("demo --subscribers -1", "'--subscribers': '-1' is no whole number from 0 on."),
        ("get -o ''", "'-o' / '--output': '' is no name;"),
        ("sub -o ''", "'-o' / '--output': '' is no name;"),
    ],
)
def test_a_wrong_value_is_told_with_the_right_ones(command, words):
    name, *rest = ["" if word == "''" else word for word in command.split()]
    line = failing(2, name, *rest, URL)
    assert line.startswith("Invalid value for ")
    assert words in line
    assert line.endswith(f". Try `zcserver {name} --help`.")
