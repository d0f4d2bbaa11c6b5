"""Every example runs by the line in its header, and says what it should."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAYS = {
    "echo_streams.py": r"hello\n4 MiB came back, \d MiB of them left by reference",
    "numpy_arrays.py": r"50 arrays, \d+ MiB by reference, \d+ copied",
    "own_loop.py": r"1048576 bytes through the codec alone",
    "third_party_protocol.py": r"4 MiB by HTTP over ZCP/1",
    "topics_camera.py": r"a slow viewer saw \d+ frames and missed \d+\n(?s:.*)MiB were shown; .*\d+ MiB",
    "topics_log.py": r"5 tails saw 40 lines each; one came back later: .*",
    "topics_workers.py": r"worker 1 died(?s:.*)40 batches done by 4 workers, each once stored",
    "trio_client.py": r"HELLO FROM TRIO",
    "video_frames.py": r"\d+ frames shown, \d+ dropped, \d+ MiB",
}


def test_every_example_is_run_here() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == SAYS.keys()


@pytest.mark.parametrize("name", SAYS)
def test_the_line_in_its_header_runs_an_example(name: str) -> None:
    header = (ROOT / "examples" / name).read_text()
    (line,) = re.findall(r"^    python (examples/.*)$", header, re.MULTILINE)
    command = [sys.executable, "-W", "error", *shlex.split(line)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(SAYS[name], done.stdout.strip())
