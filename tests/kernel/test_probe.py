import errno
import json
import os
import subprocess
import sys

import pytest

from tests.kernels import METHODS, CopyingKernel, FailingKernel, ForbiddenKernel
from zcserver import engine
from zcserver.kernel.calls import Kernel
from zcserver.kernel.doctor import report, to_json
from zcserver.kernel.probe import probe


class Without(Kernel):
    """A system where every one of the named calls answers ``number``."""

    def __init__(self, number: int, *methods: str) -> None:
        def refuse(*_args, **_kwargs):
            raise OSError(number, os.strerror(number))

        for method in methods:
            setattr(self, method, refuse)


def test_the_probe_tells_reference_from_copy():
    assert probe(CopyingKernel()).vmsplice == "copies"
    assert "vmsplice" not in probe(CopyingKernel()).lanes


def test_the_probe_says_what_this_machine_does():
    found = probe()
    assert found.vmsplice in ("reference", "copies", "forbidden")
    assert ("vmsplice" in found.lanes) == (found.vmsplice == "reference")
    assert found.lanes[-1] == "copy"
    assert set(found.reasons) == {"vmsplice", "file", "copy"}
    assert found.pipe_slots * 4096 == found.pipe_size
    assert found.huge_pages in ("always", "madvise", "never")
    assert found.kernel_release == os.uname().release


def test_a_forbidden_vmsplice_is_a_finding_with_the_reason():
    found = probe(ForbiddenKernel())
    assert found.vmsplice == "forbidden"
    assert os.strerror(errno.EPERM) in found.reasons["vmsplice"]
    assert found.lanes == ("file", "copy")


def test_without_splice_only_copying_is_left():
    found = probe(Without(errno.ENOSYS, "vmsplice", "splice"))
    assert found.lanes == ("copy",)
    assert os.strerror(errno.ENOSYS) in found.reasons["file"]


def test_without_pipes_only_copying_is_left():
    found = probe(Without(errno.EMFILE, "pipe"))
    assert found.lanes == ("copy",)
    assert (found.pipe_size, found.pipe_slots) == (0, 0)


def test_a_user_without_pipe_quota_is_told_so():
    class NoQuota(Kernel):
        def set_pipe_size(self, fd: int, size: int) -> int:
            if size > 8192:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            return super().set_pipe_size(fd, size)

        def pipe(self) -> tuple[int, int]:
            ends = super().pipe()
            super().set_pipe_size(ends[1], 8192)
            return ends

    found = probe(NoQuota())
    assert found.pipe_slots == 2
    assert found.lanes == ("copy",)
    assert "quota" in found.reasons["vmsplice"]
    assert found.vmsplice != "forbidden", "it works, it does not pay"


def test_openat2_and_congestion_control_may_be_missing():
    found = probe(Without(errno.ENOSYS, "openat2", "page_cached"))
    assert not found.openat2
    assert not found.nowait_reads
    assert probe(Without(errno.ENOPROTOOPT, "get_congestion")).congestion_default is None


def test_an_unpaced_default_is_kept_and_a_paced_one_replaced_if_allowed():
    class Says(Kernel):
        def __init__(self, default: str, *allowed: str) -> None:
            self.default, self.allowed = default, allowed

        def get_congestion(self, sock):
            return self.default

        def set_congestion(self, sock, name):
            if name not in self.allowed:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    assert probe(Says("reno")).congestion_unpaced == "reno"
    assert probe(Says("bbr", "reno", "bbr")).congestion_unpaced == "reno"
    assert probe(Says("bbr", "reno", "cubic")).congestion_unpaced == "cubic"
    assert probe(Says("bbr")).congestion_unpaced is None


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EMFILE])
def test_whichever_call_fails_the_probe_answers_and_leaks_nothing(number):
    before = len(os.listdir("/proc/self/fd"))
    failed = set()
    for nth in range(1, 100):
        kernel = FailingKernel(None, nth, error=number)
        assert probe(kernel).lanes[-1] == "copy"
        assert len(os.listdir("/proc/self/fd")) == before
        if not kernel.fired:
            break
        failed.add(kernel.failed)
    assert {"pipe", "vmsplice", "splice", "openat2", "page_cached", "get_congestion"} <= failed
    assert failed <= set(METHODS)


@pytest.mark.parametrize(
    "kernel", [Kernel(), ForbiddenKernel(), CopyingKernel(), Without(errno.EPERM, *METHODS)]
)
def test_the_doctor_explains_every_finding(kernel):
    rows = report(probe(kernel))
    assert all(label and value and meaning for label, value, meaning in rows)
    assert len({label for label, _, _ in rows}) == len(rows)


def test_the_doctor_says_how_to_allow_vmsplice():
    rows = {label: (value, meaning) for label, value, meaning in report(probe(ForbiddenKernel()))}
    assert rows["vmsplice"][0] == "forbidden"
    assert "seccomp" in rows["vmsplice"][1]


def test_the_findings_are_json():
    found = json.loads(to_json(probe(ForbiddenKernel())))
    assert found["vmsplice"] == "forbidden"
    assert found["lanes"] == ["file", "copy"]
    assert set(found["reasons"]) == {"vmsplice", "file", "copy"}
    assert found["compiled"] is not engine.__file__.endswith(".py")


UNPRIVILEGED_SCRIPT = """
import os
from zcserver.kernel.doctor import to_json
from zcserver.kernel.probe import probe
os.setgroups([]); os.setgid(UID); os.setuid(UID)
print(to_json(probe()))
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_an_ordinary_user_may_do_what_the_probe_says_of_vmsplice():
    script = UNPRIVILEGED_SCRIPT.replace("UID", str(200_000 + os.getpid()))
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found, ours = json.loads(ran.stdout), probe()
    assert (found["vmsplice"], tuple(found["lanes"])) == (ours.vmsplice, ours.lanes)
