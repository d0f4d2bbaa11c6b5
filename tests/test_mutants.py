"""Every safety rule, when broken, makes the test fail that stands for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import MUTANTS


@pytest.mark.interpreted
@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_seen(name):
    test, because, _ = MUTANTS[name]
    # What hangs under a mutant is cut soon; the healthy test takes a fraction of a second.
    environment = {**os.environ, "ZCSERVER_MUTANT": name, "ZCSERVER_TEST_DEADLINE": "4"}
    outcome = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test],
        cwd=Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr  # 1: tests ran, and some failed
    assert "1 failed" in outcome.stdout, outcome.stdout
    assert because in outcome.stdout, outcome.stdout
