"""A server killed at any step of a PUT leaves the old file or the whole new one."""

import subprocess
import sys


def test_a_server_killed_at_any_step_leaves_the_old_file_or_the_new_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.server.crashing", tmp_path],
        check=True, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    lives = [line.split() for line in done.stdout.splitlines()]
    held = [life[0] for life in lives]
    assert len(lives) > 50
    # Old up to one step, the rename, and new from there on.
    assert held == ["old"] * held.count("old") + ["new"] * held.count("new")
    assert held.count("old") >= 45
    assert held.count("new") >= 3
    # Only the one that survived said COMMIT, and the deaths did leave something to tidy up.
    assert [life[1] for life in lives] == ["0"] * (len(lives) - 1) + ["1"]
    assert {life[2] for life in lives} == {"0", "1"}
    assert {life[3] for life in lives} == {"0"}
