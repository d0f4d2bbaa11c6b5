"""Symbolic links where a tree goes to: nothing is reached through them. And what else is in its way."""

import json
import os

import pytest

from tests.cli.commands import zcserver
from tests.trees import content_of

FILES_ONLY = ["--include", "*[!r]"]  # does not match any folder
IN_THE_WAY = "is a symbolic link: remove it, or sync with --delete"
SPECIAL = "pipe is a special file: remove it, or sync with --delete"


def told(*arguments, **options):
    return json.loads(zcserver(*arguments, "--json", **options).stdout)


def plant(top, names):
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(f"the new {name}")


@pytest.fixture
def outside(tmp_path):
    """Files and folders that links in ``local/copy`` lead to, by the names of what is served."""
    directory = tmp_path / "outside"
    plant(directory, ["file", "folder/one", "folder/inner/two"])
    for path in (directory, *directory.rglob("*")):
        os.utime(path, ns=(7, 7))
    return directory


def everything(top):
    """Content, times and permissions."""
    return content_of(top), {path: path.stat().st_mode for path in top.rglob("*")}


@pytest.fixture
def copy(served, local, outside):
    """Where the tree is to go: with links at the place of a folder and of files, one of them up to date."""
    plant(served, ["dangling", "file", "folder/inner/two", "folder/one", "rest"])
    os.utime(served / "file", ns=(7, 7))
    directory = local / "copy"
    directory.mkdir()
    (directory / "dangling").symlink_to(outside / "nothing")
    (directory / "file").symlink_to(outside / "file")
    (directory / "folder").symlink_to(outside / "folder")
    return directory


@pytest.mark.parametrize(
    "command",
    ["get -r URL -o copy", "sync URL copy"],
)
@pytest.mark.parametrize("options", [[], FILES_ONLY])
def test_links_below_the_target_stay_with_what_they_lead_to(url, copy, outside, command, options):
    before = everything(outside)
    done = told(*command.replace("URL", url).split(), *options, code=16)
    failed = [(failure["error"].split(":")[0], failure["code"]) for failure in done["failures"]]
    assert failed == [(f"copy/{name}", 16) for name in ("dangling", "file", "folder")]
    assert all(IN_THE_WAY in failure["error"] for failure in done["failures"])
    assert (done["files"], done["unchanged"], done["removed"]) == (1, 0, 0)
    assert everything(outside) == before
    assert (copy / "rest").read_text() == "the new rest"
    assert all((copy / name).is_symlink() for name in ("dangling", "file", "folder"))


@pytest.mark.parametrize("options", [[], FILES_ONLY])
def test_a_sync_that_deletes_replaces_links_and_its_plan_says_so(url, served, copy, outside, options):
    before = everything(outside), content_of(served)
    plan = told("sync", url, "copy", "--delete", "--dry-run", *options)
    assert sorted(os.listdir(copy)) == ["dangling", "file", "folder"]
    done = told("sync", url, "copy", "--delete", *options)
    for outcome in (plan, done):
        assert (outcome["files"], outcome["unchanged"], outcome["removed"]) == (5, 0, 3)
        assert outcome["deleted"] == ["copy/dangling", "copy/file", "copy/folder"]
    assert (everything(outside), content_of(served)) == before
    assert content_of(copy, times=not options) == content_of(served, times=not options)
    assert not any(path.is_symlink() for path in copy.rglob("*"))


def test_the_target_itself_may_be_a_link(url, served, local, outside):
    plant(served, ["file", "folder/new"])
    (local / "copy").symlink_to(outside)
    zcserver("get", "-r", url, "-o", "copy")
    assert (outside / "folder" / "new").read_text() == "the new folder/new"
    assert (outside / "folder" / "one").exists()
    zcserver("sync", url, "copy", "--delete")
    assert (local / "copy").is_symlink()
    assert content_of(outside) == content_of(served)
    assert outside.stat().st_mtime_ns == served.stat().st_mtime_ns


def test_a_target_that_is_no_folder_is_not_replaced_by_one(url, served, local):
    plant(served, ["file"])
    (local / "copy").write_text("precious")
    for options in ([], ["--delete"], ["--delete", "--dry-run"]):
        assert told("sync", url, "copy", *options, code=16)["removed"] == 0
        assert (local / "copy").read_text() == "precious"


def test_a_single_file_still_goes_through_a_link(url, served, local, outside):
    plant(served, ["file"])
    (local / "file").symlink_to(outside / "folder" / "one")
    zcserver("get", f"{url}/file")
    assert (local / "file").is_symlink()
    assert (outside / "folder" / "one").read_text() == "the new file"


def test_what_is_excluded_stays_also_where_a_file_takes_the_place_of_its_folder(url, served, local):
    plant(served, ["free", "held"])
    plant(local / "copy", ["free/inner/a", "held/b", "held/own.cfg"])
    plan = told("sync", url, "copy", "--delete", "--dry-run")
    assert plan["removed"] == 6
    done = told("sync", url, "copy", "--delete", "--exclude", "*.cfg", code=16)
    assert [failure["path"].rpartition("/")[2] for failure in done["failures"]] == ["held"]
    assert (local / "copy" / "free").read_text() == "the new free"
    assert sorted(os.listdir(local / "copy" / "held")) == ["b", "own.cfg"]
    assert told("sync", url, "copy", "--delete")["removed"] == 3
    assert content_of(local / "copy") == content_of(served)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_sync_that_deletes_replaces_whatever_is_no_file(url, served, local, make):
    plant(served, ["file"])
    (local / "copy").mkdir()
    make(local / "copy" / "file")
    assert told("sync", url, "copy", "--delete")["removed"] == 1
    assert content_of(local / "copy") == content_of(served)


# -- to a server -----------------------------------------------------------------------------------------


@pytest.fixture
def there(served, local):
    """Where the tree ``local/copy`` is to go: with links that its server would follow."""
    plant(local / "copy", ["file", "folder/inner/two", "folder/one", "pipe", "rest"])
    plant(served / "real", ["file", "folder/one"])
    directory = served / "there"
    directory.mkdir()
    (directory / "file").symlink_to("../real/file")
    (directory / "folder").symlink_to("../real/folder")
    os.mkfifo(directory / "pipe")
    return directory


@pytest.mark.parametrize("options", [[], FILES_ONLY])
def test_a_sync_to_a_server_goes_through_no_link_either(writable_url, served, there, options):
    before = everything(served / "real")
    done = told("sync", "copy", f"{writable_url}/there", *options, code=16)
    failed = {failure["error"].removeprefix(f"/{served.name}/there/") for failure in done["failures"]}
    assert failed == {f"file {IN_THE_WAY}", f"folder {IN_THE_WAY}", SPECIAL}
    assert len(done["failures"]) == 3
    assert done["files"] == 1
    assert (there / "rest").read_text() == "the new rest"
    assert everything(served / "real") == before


@pytest.mark.parametrize("options", [[], FILES_ONLY])
def test_a_sync_to_a_server_that_deletes_replaces_what_is_in_the_way(
    writable_url, served, local, there, options
):
    before = everything(served / "real")
    plan = told("sync", "copy", f"{writable_url}/there", "--delete", "--dry-run", *options)
    assert (there / "file").is_symlink()
    done = told("sync", "copy", f"{writable_url}/there", "--delete", *options)
    for outcome in (plan, done):
        assert (outcome["files"], outcome["removed"]) == (5, 3)
        assert [name.rpartition("/")[2] for name in outcome["deleted"]] == ["file", "folder", "pipe"]
    assert content_of(there, times=not options) == content_of(local / "copy", times=not options)
    assert everything(served / "real") == before


def test_what_is_excluded_stays_on_a_server_too(writable_url, served, local):
    plant(local / "copy", ["free", "held"])
    plant(served / "there", ["free/inner/a", "held/b", "held/own.cfg"])
    url = f"{writable_url}/there"
    assert told("sync", "copy", url, "--delete", "--dry-run")["removed"] == 6
    done = told("sync", "copy", url, "--delete", "--exclude", "*.cfg", code=16)
    assert [failure["path"].rpartition("/")[2] for failure in done["failures"]] == ["held"]
    assert (served / "there" / "free").read_text() == "the new free"
    assert sorted(os.listdir(served / "there" / "held")) == ["b", "own.cfg"]
    assert told("sync", "copy", url, "--delete")["removed"] == 3
    assert content_of(served / "there") == content_of(local / "copy")
