"""Trees out and back by ``get -r``, ``put -r`` and ``sync``; and the small commands around them."""

import json
import os
import subprocess

from tests.cli.commands import failing, serving, zcserver
from tests.trees import content_of, make_tree


def told(*arguments, **options):
    return json.loads(zcserver(*arguments, "--json", **options).stdout)


def test_a_tree_goes_out_and_comes_back_identical(writable_url, served, local):
    tree = make_tree(local / "tree")
    zcserver("put", "-r", "tree", f"{writable_url}/there")
    assert content_of(served / "there") == content_of(tree)
    zcserver("get", "-r", f"{writable_url}/there", "-o", "back")
    assert content_of(local / "back") == content_of(tree)
    assert (local / "back").stat().st_mtime_ns == tree.stat().st_mtime_ns


def test_sync_both_ways_makes_the_same_and_the_second_one_transfers_nothing(writable_url, served, local):
    tree = make_tree(local / "tree")
    expected = content_of(tree)
    files = sum(content is not None for content, _ in expected.values())
    first = told("sync", "tree", f"{writable_url}/there")
    assert (first["files"], first["unchanged"], first["failures"]) == (files, 0, [])
    assert content_of(served / "there") == expected
    first = told("sync", f"{writable_url}/there", "back")
    assert (first["files"], first["unchanged"]) == (files, 0)
    assert content_of(local / "back") == expected
    for source, target in (("tree", f"{writable_url}/there"), (f"{writable_url}/there", "back")):
        again = told("sync", source, target, "--delete")
        assert (again["files"], again["bytes"], again["removed"], again["unchanged"]) == (0, 0, 0, files)
    assert content_of(served / "there") == content_of(local / "back") == expected


def test_sync_transfers_what_changed_and_removes_only_when_told(writable_url, served, local):
    for name in ("same", "changed", "gone", "folder/inner"):
        (local / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (local / "tree" / name).write_text(name)
    zcserver("sync", "tree", f"{writable_url}/there")
    zcserver("sync", f"{writable_url}/there", "back")
    (local / "tree" / "changed").write_text("otherwise")
    (local / "tree" / "gone").unlink()
    (local / "tree" / "folder" / "inner").unlink()
    (local / "tree" / "folder").rmdir()
    (local / "tree" / "folder").write_text("a file now")
    for source, target, place in (
        ("tree", f"{writable_url}/there", served / "there"),
        (f"{writable_url}/there", "back", local / "back"),
    ):
        before = content_of(place)
        plan = zcserver("sync", source, target, "--delete", "--dry-run")
        assert content_of(place) == before
        assert "2 files to transfer" in plan.stderr
        assert [line.split()[0] for line in plan.stdout.splitlines()].count("remove") >= 2
        done = told("sync", source, target, "--delete")
        assert (done["files"], done["unchanged"], done["failures"]) == (2, 1, [])
        assert content_of(place) == content_of(local / "tree")


def test_patterns_choose_and_what_is_excluded_stays(writable_url, served, local):
    for name in ("a.txt", "b.bin", "keep/c.txt", "skip/d.txt", "keep/skip.txt"):
        (served / name).parent.mkdir(exist_ok=True)
        (served / name).write_text(name)
    zcserver("get", "-r", writable_url, "-o", "some", "--include", "*.txt", "--exclude", "skip")
    assert {name for name, (content, _) in content_of("some").items() if content is not None} == {
        b"a.txt", b"keep/c.txt", b"keep/skip.txt",
    }  # fmt: skip
    (local / "more").mkdir()
    (local / "more" / "a.txt").write_text("new")
    zcserver("sync", "more", writable_url, "--delete", "--exclude", "keep/c.*", "--exclude", "*.bin")
    assert sorted(content_of(served)) == [b"a.txt", b"b.bin", b"keep", b"keep/c.txt"]


def test_small_commands_look_and_arrange(writable_url, writable_server, served):
    base = writable_url
    zcserver("mkdir", "-p", f"{base}/a/b", f"{base}/a/b")
    (served / "a" / "100% \n").write_bytes(b"12345")
    assert zcserver("ls", f"{base}/a").stdout.splitlines() == ["100%25 %0A", "b/"]
    assert zcserver("ls", "-r", base).stdout.splitlines() == ["a/", "a/100%25 %0A", "a/b/"]
    assert "              5 " in zcserver("ls", "-l", f"{base}/a").stdout
    listed = [json.loads(line) for line in zcserver("ls", "--json", f"{base}/a").stdout.splitlines()]
    assert [(entry["path"], entry["type"]) for entry in listed] == [
        ("100%25 %0A", "file"),
        ("b", "directory"),
    ]
    zcserver("mv", f"{base}/a/100%25 %0A", f"{base}/a/b/c")
    assert zcserver("ls", f"{base}/a/b/c").stdout.endswith("/a/b/c\n")
    status = json.loads(zcserver("stat", "--json", f"{base}/a/b/c").stdout)
    found = (served / "a" / "b" / "c").stat()
    assert (status["type"], status["size"], status["mtime_ns"]) == ("file", 5, found.st_mtime_ns)
    assert "5 bytes" in zcserver("stat", f"{base}/a/b/c").stdout
    (served / "d").write_text("d")
    zcserver("mv", f"{base}/d", f"{base}/a/")
    zcserver("mv", f"{base}/a/d", f"{base}/d")
    failing(16, "mv", f"{base}/d", f"{base}/a/b/c")
    zcserver("mv", "-f", f"{base}/d", f"/{served.name}/a/b/c")
    assert (served / "a" / "b" / "c").read_text() == "d"
    zcserver("rm", f"{base}/a/b/c")
    zcserver("rm", "-r", f"{base}/a")
    assert os.listdir(served) == []


def test_standard_input_is_sent_under_a_name(writable_url, served):
    zcserver("put", "-", f"{writable_url}/there", input="content")
    zcserver("put", "-", f"{writable_url}/empty", stdin=subprocess.DEVNULL)
    assert (served / "there").read_text() == "content"
    assert (served / "empty").read_bytes() == b""
    assert "no name" in failing(2, "put", "-", f"{writable_url}/", stdin=subprocess.DEVNULL)
    assert "checksum" in failing(2, "put", "-", f"{writable_url}/x", "--verify", stdin=subprocess.DEVNULL)


def test_a_file_that_only_says_it_is_empty_is_not_sent_as_such(writable_url, served):
    line = failing(4, "put", "/proc/self/status", f"{writable_url}/status")
    assert line == "/proc/self/status: does not tell its size: send it as standard input (put - URL < FILE)"
    assert os.listdir(served) == []
    with open("/proc/self/status") as status:
        zcserver("put", "-", f"{writable_url}/status", stdin=status)
    assert (served / "status").read_text().startswith("Name:")


def test_files_are_sent_as_cp_would(writable_url, served, local):
    for name in ("a", "b"):
        (local / name).write_text(name)
    (served / "into").mkdir()
    zcserver("put", "a", "b", f"{writable_url}/into/", "--verify")
    zcserver("put", "a", f"{writable_url}/new")
    assert sorted(content_of(served)) == [b"into", b"into/a", b"into/b", b"new"]
    assert (served / "new").stat().st_mtime_ns == (local / "a").stat().st_mtime_ns
    assert "slash" in failing(2, "put", "a", "b", f"{writable_url}/into")
    assert "-r" in failing(4, "put", local, f"{writable_url}/x")


def test_a_directory_that_is_served_itself_is_synced_without_what_its_server_keeps(
    writable_url, served, tmp_path
):
    with serving(tmp_path, "--writable") as server:
        (tmp_path / "file").write_text("content")
        done = told("sync", tmp_path, f"{writable_url}/there")
        assert (done["files"], os.listdir(served / "there")) == (1, ["file"])
        done = told("sync", f"{writable_url}/there", tmp_path, "--delete")
        assert (done["removed"], done["unchanged"]) == (0, 1)
        zcserver("put", tmp_path / "file", f"{server.url}/another")
    assert (tmp_path / "another").read_text() == "content"


def test_what_other_servers_keep_deeper_in_a_tree_is_neither_sent_nor_removed(writable_url, served, local):
    for name in ("kept/.zcserver/upload", "kept/file", "file"):
        (local / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (local / "tree" / name).write_text(name)
    zcserver("put", "-r", "tree", f"{writable_url}/there")
    assert sorted(content_of(served / "there")) == [b"file", b"kept", b"kept/file"]
    (served / "empty").mkdir()
    done = told("sync", f"{writable_url}/empty", "tree", "--delete")
    assert done["deleted"] == ["tree/kept/file", "tree/file"]
    assert sorted(content_of(local / "tree")) == [b"kept", b"kept/.zcserver", b"kept/.zcserver/upload"]


def test_what_is_not_included_is_not_removed_either(writable_url, served, local):
    for top, names in (
        (local / "here", ["a.txt", "new.txt"]),
        (served / "there", ["b.bin", "b.txt", "folder/c.bin", "folder/c.txt", "old/d.txt"]),
    ):
        for name in names:
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_text(name)
    zcserver("get", "-r", f"{writable_url}/there", "-o", "back")
    (local / "back" / "own.bin").write_text("which the server does not have")
    include = ["--delete", "--include", "*.txt"]
    done = told("sync", "here", f"{writable_url}/there", *include)
    assert [name.rpartition("there/")[2] for name in done["deleted"]] == [
        "old/d.txt",
        "old",
        "folder/c.txt",
        "b.txt",
    ]
    assert sorted(content_of(served / "there")) == [
        b"a.txt",
        b"b.bin",
        b"folder",
        b"folder/c.bin",
        b"new.txt",
    ]
    done = told("sync", f"{writable_url}/there", "back", *include)
    assert [name.rpartition("back/")[2] for name in done["deleted"]] == [
        "old/d.txt",
        "old",
        "folder/c.txt",
        "b.txt",
    ]
    (local / "back" / "own.bin").unlink()
    assert content_of(local / "back", times=False) == content_of(served / "there", times=False)


def test_a_file_is_no_tree_to_sync(writable_url, served, local):
    (local / "file").touch()
    assert "file: Not a directory" in failing(4, "sync", "file", f"{writable_url}/there")
    assert os.listdir(served) == []
