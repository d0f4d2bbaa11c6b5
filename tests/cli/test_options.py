"""Sizes as they are written on the command line."""

import pytest
import typer

from zcserver.cli.options import parse_memory, parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0), ("0.0", 0), ("4096", 4096), (" 64M ", 64 << 20), ("1.5GiB", 3 << 29), ("2 tb", 2 << 40),
        ("1.9", 1), ("0.1K", 102), ("4.35K", 4454), ("0.3T", (3 << 40) // 10),
        ("9007199254740993", (1 << 53) + 1), ("9223372036854775807", (1 << 63) - 1),
    ],
)  # fmt: skip
def test_a_size_is_exact(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "-1", "1.", ".5", "1e3", "1P", "1.5.5", "²", "9" * 9999])
def test_what_is_no_size(text):
    with pytest.raises(typer.BadParameter, match="no size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0.5", "0.0009K", "0." + "0" * 500 + "1T"])
def test_less_than_a_byte_is_not_taken_for_nothing(text):
    with pytest.raises(typer.BadParameter, match="less than a byte"):
        parse_size(text)


def test_a_size_ends_where_offsets_do_and_memory_before():
    for text in ("9223372036854775808", "8388608T", "9" * 999):
        with pytest.raises(typer.BadParameter, match="sizes end at 9223372036854775807 bytes"):
            parse_size(text)
    assert parse_memory("64T") == 64 << 40
    with pytest.raises(typer.BadParameter, match="64T at most"):
        parse_memory("65T")
