"""Which files of a tree are meant: whatever a server lists, in whatever order, and in little time."""

import pytest

from tests.client.test_listings import client_of_listing
from tests.trees import content_of
from zcserver.client.selection import Selection
from zcserver.file_protocol import Entry


@pytest.mark.parametrize("pattern", ["*.git", ".git/", "**/.git", ".g[!a]t", "/.git", ".git/**"])
def test_what_is_in_a_folder_that_is_left_out_is_left_out(pattern):
    selection = Selection(exclude=[pattern])
    below = [".git/config", ".git/hooks/pre-commit"]
    others = [".gitconfig", "a.git.b", "hooks/pre-commit"]
    assert [path for path in below + others if selection.excludes(path)] == below


@pytest.mark.parametrize(
    ("pattern", "path", "excluded"),
    [
        ("a*b*c*d", "abcbd", True),
        ("a*b*c*d", "abdc", False),
        ("*ab*ab", "aabab", True),
        ("*ab*ab", "abaab", True),
        ("*ab*ab", "aab", False),
        ("a**b", "ab", True),
        ("**/a/**/b/**", "x/a/y/a/b/z", True),
        ("**/a/**/b/**", "x/b/a/b", False),
        ("a/**/**/b", "a/b", True),
    ],
)
def test_several_wildcards_match_where_any_of_their_places_would_do(pattern, path, excluded):
    assert Selection(exclude=[pattern]).excludes(path) == excluded


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*a*a*a*a*b", "a" * 255),
        ("**/*a*a*a*a*b/**/c", "/".join(["a" * 255] * 16)),
        ("a/**/a/**/a/**/a/**/b", "/".join(["a"] * 2048)),
    ],
)
def test_no_pattern_takes_longer_than_a_path_is_long(pattern, path):
    assert not Selection(include=[pattern]).includes(path)
    assert not Selection(exclude=[pattern]).excludes(path)


@pytest.mark.anyio
async def test_no_order_of_a_listing_brings_what_is_excluded(served, local, make_context):
    names = [".git/config", ".git/hooks/pre-commit", "inner/.git/config", "README"]
    for name in names:
        (served / name).parent.mkdir(parents=True, exist_ok=True)
        (served / name).write_text("the server's")
    entries = [Entry(name, "file", 12) for name in names]
    for pattern in (".git", "**/.git"):
        async with client_of_listing(served, make_context, entries) as client:
            report = await client.sync("/", local / "copy", exclude=[pattern])
        assert (report.skipped, report.failures) == ([], [])
        assert set(content_of(local / "copy")) == {b"README"}


@pytest.mark.anyio
async def test_names_of_the_servers_and_of_downloads_are_not_taken_from_a_listing(
    served, local, make_context
):
    names = [".zcserver/x", "a/.zcserver/y", ".f.zcpart/z", "a/.f.zcfrom", ".zcserver"]
    entries = [Entry(name, "file", 5) for name in names] + [Entry("b/.zcserver", "directory")]
    async with client_of_listing(served, make_context, entries) as client:
        report = await client.fetch_tree("/", local / "copy")
    assert report.skipped == [f"/{entry.path}" for entry in entries]
    assert report.failures == []
    assert content_of(local / "copy") == {}
