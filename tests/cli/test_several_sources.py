"""``get`` and ``put`` of several sources: each gets a name of its own, or nothing is done at all."""

import os

import pytest

from tests.cli.commands import failing, zcserver


def unreachable(path):
    """A URL to which connecting would be another error than the one that is expected."""
    return f"zc://127.0.0.1:1{path}"


@pytest.mark.parametrize("options", [[], ["-r"]])
def test_get_refuses_two_sources_that_would_have_one_name(local, options):
    (local / "into").mkdir()
    for first, second in (("/a/x", "/b/x"), ("/a/x", "/a/x"), ("/a/x", "/a/%78")):
        line = failing(2, "get", unreachable(first), unreachable(second), "-o", "into", *options)
        assert f"{unreachable(first)} and {unreachable(second)} would both become into/x" in line
        assert "each by itself" in line
    assert "would both become x" in failing(2, "get", "zc://127.0.0.1:1/x", "zc://127.0.0.1:2/x", *options)
    assert os.listdir(local / "into") == []


@pytest.mark.parametrize("options", [[], ["-r"]])
def test_put_refuses_two_sources_that_would_have_one_name(local, options):
    for folder in ("a", "b"):
        (local / folder / "x").mkdir(parents=True)
    for first, second in (("a/x", "b/x"), ("a/x", "a/x"), ("a/x", "./a/x/")):
        line = failing(2, "put", first, second, unreachable("/to/"), *options)
        assert f"{first} and {second} would both become /to/x" in line
        assert "each by itself" in line


def test_put_takes_standard_input_alone(local):
    (local / "file").touch()
    assert "standard input goes alone" in failing(2, "put", "-", "file", unreachable("/to/"))


@pytest.mark.parametrize("option", ["--include", "--exclude"])
def test_patterns_that_nothing_would_be_compared_with_are_refused(local, option):
    (local / "secret.key").touch()
    for command in (
        ["get", unreachable("/secret.key")],
        ["get", unreachable("/secret.key"), "-o", "-"],
        ["put", "secret.key", unreachable("/")],
    ):
        assert "add -r" in failing(2, *command, option, "*.key")


def test_files_and_directories_of_different_names_go_together(writable_url, served, local):
    (local / "folder").mkdir()
    (local / "folder" / "inner").write_text("inner")
    (local / "file").write_text("file")
    zcserver("put", "-r", "folder", "file", f"{writable_url}/")
    assert (served / "folder" / "inner").read_text() == "inner"
    assert (served / "file").read_text() == "file"
