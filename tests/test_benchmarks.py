"""The comparisons run, and their results have the fields that their README explains."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import slow_disk
from benchmarks.side import PAGE, CorruptionError
from benchmarks.stamped_files import check, create, name_of
from benchmarks.throttled_disk import Disk

ROOT = Path(__file__).parent.parent


def test_asyncio_contender_moves_and_measures_a_few_mebibytes(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    options = ["--only", "asyncio", "--sizes", "64KiB", "--gib", "0.0078125", "--rounds", "2"]
    command = [sys.executable, "-m", "benchmarks", *options, "--json", str(results)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)

    assert done.returncode == 0, done.stderr
    assert "64 KiB" in done.stdout
    document = json.loads(results.read_text())
    assert document["failures"] == []
    (row,) = document["summary"]
    assert (row["contender"], row["size"], row["rounds"]) == ("asyncio", 65536, 2)
    assert 0 < row["low"] <= row["rate"] <= row["high"]
    assert row["rate_ratio"] == row["send_cpu_ratio"] == row["receive_cpu_ratio"] == pytest.approx(1)
    for run in document["runs"]:
        assert run["send"]["bytes"] == 8 << 20
        assert run["receive"]["bytes"] == (8 << 20) - 65536
        assert run["send"]["user"] + run["send"]["system"] > 0
        assert run["receive"]["seconds"] > 0
        assert run["send"]["congestion"] == document["circumstances"]["congestion control"]


def test_transports_are_compared_by_writes_and_by_round_trips(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    options = ["--only", "asyncio", "zcserver-uvloop", "--sizes", "1KiB", "--gib", "0.001953125"]
    command = [sys.executable, "-m", "benchmarks.transports", *options, "--round-trips", "50"]

    done = subprocess.run(
        [*command, "--rounds", "1", "--json", str(results)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )

    assert done.returncode == 0, done.stderr
    assert "client CPU µs" in done.stdout
    document = json.loads(results.read_text())
    assert document["failures"] == []
    runs = {(run["contender"], run["size"]): run for run in document["runs"]}
    assert set(runs) == {(name, size) for name in ("asyncio", "zcserver-uvloop") for size in (1024, 64)}
    for (_, size), run in runs.items():
        assert run["send"]["bytes"] == (2 << 20 if size == 1024 else 50 * 64)
        assert run["send"]["seconds"] > 0
        assert run["send"]["congestion"] == document["circumstances"]["congestion control"]


def test_file_servers_are_fetched_from_and_measured(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    sizes = ["--large-mib", "4", "--passes", "2", "--small-files", "20", "--in-flight", "3", "--rounds", "1"]
    contenders = ["--only", "zcserver", "http.server", "--baseline", "http.server"]
    command = [sys.executable, "-m", "benchmarks.files", *sizes, *contenders, "--dir", str(tmp_path)]

    done = subprocess.run(
        [*command, "--json", str(results)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )

    assert done.returncode == 0, done.stderr
    assert "20 × 64 KiB, 3 in flight" in done.stdout
    document = json.loads(results.read_text())
    assert document["failures"] == []
    runs = {(run["server"], run["job"]["files"]): run for run in document["runs"]}
    assert set(runs) == {(name, files) for name in ("zcserver", "http.server") for files in (1, 20)}
    for (_, files), run in runs.items():
        assert run["nbytes"] == (8 << 20 if files == 1 else 20 * 65536)
        assert min(run["seconds"], run["server_cpu"], run["receiver_cpu"]) > 0
        assert run["receiver_congestion"] == document["circumstances"]["congestion control"]
    for row in document["summary"]:
        assert 0 < row["low"] <= row["medians"]["rate"] <= row["high"]
        if row["server"] == "http.server":
            assert set(row["ratios"].values()) == {1}
    assert list(tmp_path.iterdir()) == [results]


def test_received_pages_of_the_wrong_place_or_file_are_noticed(tmp_path: Path) -> None:
    create(tmp_path / "files", files=2, size=3 * PAGE)
    data = memoryview((tmp_path / "files" / name_of(1)).read_bytes())

    check(data, file=1, position=0)
    check(data[100:], file=1, position=100)
    for file, position in ((0, 0), (1, PAGE), (1, 5 * PAGE)):
        with pytest.raises(CorruptionError):
            check(data, file, position)


def test_latency_beside_a_disk_is_asked_for_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_disk, "_SLOW_FILES", 3)
    monkeypatch.setattr(slow_disk, "_SLOW_SIZE", 1 << 16)
    folder = tmp_path / "disk"
    folder.mkdir()
    settings = Namespace(cores=(-1, -1), rounds=1, seconds=0.2, streams=2, rate=1 << 20)

    found = slow_disk.run(tmp_path, Disk(folder, lambda: None), settings)

    assert set(found) == {"idle", "fast disk", "slow disk"}
    for answers in found.values():
        assert set(answers) == {"PING", "GET 4 KiB", "GET 1 MiB"}
        assert all(seconds > 0 for kind in answers.values() for seconds in kind)
    assert slow_disk.table(found, markdown=True).count("| PING |") == 3


def test_fan_out_reaches_every_subscriber_and_is_measured(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    options = ["--subscribers", "1", "3", "--gib", "0.03125", "--rounds", "1", "--size", "64KiB"]
    contenders = ["--only", "zcserver", "zcserver-copy", "asyncio"]
    command = [sys.executable, "-m", "benchmarks.fanout", *options, *contenders, "--json", str(results)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)

    assert done.returncode == 0, done.stderr
    assert "| 3 | zcserver-copy |" in done.stdout
    document = json.loads(results.read_text())
    assert document["failures"] == []
    assert {(row["subscribers"], row["kind"]) for row in document["summary"]} == {
        (count, kind) for count in (1, 3) for kind in ("zcserver", "zcserver-copy", "asyncio")
    }
    for run in document["runs"]:
        assert run["delivered"] == run["subscribers"] * run["frames"] * 65536
        assert min(run["seconds"], run["cpu"], run["flow_rss"]) > 0
