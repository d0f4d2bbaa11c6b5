"""The examples of topics run, and check what they claim."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("topics_camera.py", ["--viewers", "4", "--frames", "20", "--rate", "60"], "MiB were shown"),
        ("topics_log.py", [], "5 tails saw 40 lines each"),
        ("topics_workers.py", [], "40 batches done by 4 workers"),
    ],
)
def test_an_example_of_topics_runs(name, arguments, words):
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
    assert done.stderr == ""
