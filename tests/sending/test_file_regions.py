"""A region of a file that is given up while a thread still reads it."""

import os

from zcserver.kernel.calls import Kernel
from zcserver.kernel.pipe import PipeShare
from zcserver.sending.files import FileRegion


class Cold(Kernel):
    """Nothing is in the page cache."""

    def page_cached(self, fd, offset):
        return False


def test_what_a_thread_reads_into_is_given_back_when_it_is_done(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 5000)
    kernel = Cold()
    pipes = PipeShare(kernel)
    with (tmp_path / "file").open("rb") as file:
        region = FileRegion(file.fileno(), 0, 5000, kernel, pipes, True)
    work, resumed = [], []
    assert not region.prepare(5000, lambda *job: work.append(job), lambda: resumed.append(True))
    pipe, fd = region.pipe, region._fd
    region.close()
    assert pipes.file_pipes == 1
    ((read, done),) = work
    done(read(), None)
    assert (pipes.file_pipes, pipe.closed, resumed) == (0, True, [])
    assert not os.path.exists(f"/proc/self/fd/{fd}")
    pipes.close()
