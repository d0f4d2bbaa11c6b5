"""The comparison runs, and its results have the fields that its README explains."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
