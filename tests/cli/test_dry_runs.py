"""``sync --dry-run`` tells what ``sync`` then does, to a server and from it."""

import json
import os
import re

import pytest

from tests.cli.commands import zcserver
from tests.trees import content_of


def plant(top, names):
    top.mkdir(exist_ok=True)
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(f"{top.name} {name}")


@pytest.fixture(params=["download", "upload"])
def ends(request, writable_url, served, local):
    """Where a tree comes from and goes to, and the words of a command for that."""
    if request.param == "download":
        return served / "source", local / "target", [f"{writable_url}/source", "target"]
    return local / "source", served / "target", ["source", f"{writable_url}/target"]


def state_of(top):
    """What there is, FIFOs, too, and since when."""
    return {str(path.relative_to(top)): os.lstat(path)[:2] + os.lstat(path)[6:9] for path in top.rglob("*")}


def outcome_of(ends, *options, code):
    outcome = json.loads(zcserver("sync", *ends[2], "--json", *options, code=code).stdout)
    outcome["deleted"] = sorted(name.rpartition("target/")[2] for name in outcome["deleted"])
    outcome["transferred"] = sorted(detail["path"] for detail in outcome["transferred"])
    del outcome["seconds"]
    return outcome


def done_as_told(ends, *options, code=0):
    """The outcome of a sync, which a dry run has told, and nothing else."""
    before = state_of(ends[1])
    plan = outcome_of(ends, "--dry-run", *options, code=code)
    assert state_of(ends[1]) == before
    done = outcome_of(ends, *options, code=code)
    assert plan == done
    return done


@pytest.mark.parametrize(
    ("options", "deleted"),
    [
        ([], ["a", "a/in.cfg", "a/in.txt", "b", "b/c", "b/c/in.cfg", "d", "d/e", "d/e/in.txt"]),
        (["--exclude", "*.cfg"], ["a/in.txt", "d", "d/e", "d/e/in.txt"]),
        (["--exclude", "c"], ["a", "a/in.cfg", "a/in.txt", "d", "d/e", "d/e/in.txt"]),
        (["--include", "*.txt"], ["a/in.txt", "d", "d/e", "d/e/in.txt"]),
    ],
)
def test_folders_that_hold_what_stays_are_not_removed(ends, options, deleted):
    plant(ends[0], ["new.txt"])
    plant(ends[1], ["a/in.cfg", "a/in.txt", "b/c/in.cfg", "d/e/in.txt"])
    assert done_as_told(ends, "--delete", *options)["deleted"] == deleted


@pytest.mark.parametrize("options", [[], ["--include", "*.txt"]])
def test_what_is_in_the_way_is_an_error_unless_it_may_be_removed(ends, options):
    plant(ends[0], ["file.txt", "folder/one.txt", "folder/two.txt", "pipe.txt", "rest.txt"])
    plant(ends[1], ["file.txt/inner.txt", "folder"])
    os.mkfifo(ends[1] / "pipe.txt")
    before = state_of(ends[1])
    done = done_as_told(ends, *options, code=16)
    said = [
        (failure["error"].rpartition("target/")[2].replace(": is", " is"), failure["code"])
        for failure in done["failures"]
    ]
    assert said == [
        ("file.txt is a directory: remove it, or sync with --delete", 16),
        ("folder is a file: remove it, or sync with --delete", 16),
        ("pipe.txt is a special file: remove it, or sync with --delete", 16),
    ]
    assert [name.rpartition("/")[2] for name in done["transferred"]] == ["rest.txt"]
    assert {name: found for name, found in state_of(ends[1]).items() if name != "rest.txt"} == before
    done = done_as_told(ends, *options, "--delete")
    assert done["deleted"] == ["file.txt", "file.txt/inner.txt", "folder", "pipe.txt"]
    assert content_of(ends[1], times=False) == content_of(ends[0], times=False)


@pytest.mark.parametrize("options", [["--exclude", "*.cfg"], ["--include", "*.txt"]])
def test_nothing_of_a_folder_is_removed_unless_all_of_it_may_be(ends, options):
    plant(ends[0], ["held.txt"])
    plant(ends[1], ["held.txt/a.txt", "held.txt/own.cfg", "held.txt/z/b.txt"])
    before = state_of(ends[1])
    done = done_as_told(ends, "--delete", *options, code=16)
    assert [failure["code"] for failure in done["failures"]] == [16]
    assert "is a directory with held.txt/own.cfg in it, which is left out" in done["failures"][0]["error"]
    assert state_of(ends[1]) == before


@pytest.mark.parametrize("options", [[], ["--delete"]])
def test_a_target_in_a_folder_that_is_not_there_is_an_error(ends, options):
    plant(ends[0], ["file"])
    words = [re.sub("target$", "none/target", word) for word in ends[2]]
    for dry in (["--dry-run"], []):
        outcome = outcome_of((*ends[:2], words), *options, *dry, code=3)
        assert (outcome["files"], outcome["transferred"]) == (0, [])
    plant(ends[1].parent, ["none"])
    for dry in (["--dry-run"], []):
        outcome_of((*ends[:2], words), *options, *dry, code=4)


def test_an_earlier_download_that_goes_on_is_not_removed(writable_url, served, local):
    plant(served / "source", ["file", "same"])
    plant(local / "target", [".file.zcfrom", ".file.zcpart", ".other.zcfrom", ".other.zcpart"])
    ends = served / "source", local / "target", [f"{writable_url}/source", "target"]
    assert done_as_told(ends, "--delete")["deleted"] == [".other.zcfrom", ".other.zcpart"]
