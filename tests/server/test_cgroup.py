"""The memory limit of the control group, version 1 and 2, inside containers and outside."""

import pytest

from zcserver.server.cgroup import affordable, memory_limit

MIB = 1 << 20
GIB = 1 << 30


class Machine:
    """What a process sees: its memberships, the mounts, and the limits of groups."""

    def __init__(self, tmp_path):
        self.process = tmp_path / "proc"
        self.process.mkdir()
        self.mount = tmp_path / "sys fs"
        self.mount.mkdir()

    def see(self, membership, root, kind, options="rw"):
        place = str(self.mount).replace(" ", "\\040")
        (self.process / "cgroup").write_text(membership)
        (self.process / "mountinfo").write_text(
            "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
            f"35 31 0:32 {root} {place} rw,nosuid shared:9 - {kind} cgroup {options}\n"
        )

    def limit(self, group, name, value):
        directory = self.mount / group
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(f"{value}\n")


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_the_strictest_limit_on_the_way_up_counts_in_version_2(machine):
    machine.see("0::/app.slice/app.service\n", "/", "cgroup2")
    machine.limit("app.slice/app.service", "memory.max", 2 * GIB)
    machine.limit("app.slice", "memory.max", GIB)
    machine.limit("other.slice", "memory.max", MIB)
    assert memory_limit(machine.process) == GIB
    machine.limit("app.slice", "memory.max", "max")
    assert memory_limit(machine.process) == 2 * GIB
    machine.limit("app.slice/app.service", "memory.max", "max")
    assert memory_limit(machine.process) is None


@pytest.mark.parametrize("path", ["/", "/../../elsewhere"])
def test_a_container_sees_its_own_group_as_the_top(machine, path):
    machine.see(f"0::{path}\n", "/", "cgroup2")
    machine.limit(".", "memory.max", 100 * MIB)
    assert memory_limit(machine.process) == 100 * MIB


def test_version_1_counts_its_memory_hierarchy(machine):
    machine.see("5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n", "/", "cgroup", "rw,memory")
    machine.limit("docker/abc", "memory.limit_in_bytes", 300 * MIB)
    machine.limit(".", "memory.limit_in_bytes", 9223372036854771712)
    assert memory_limit(machine.process) == 300 * MIB
    machine.limit("docker/abc", "memory.limit_in_bytes", 9223372036854771712)
    assert memory_limit(machine.process) is None


def test_version_1_in_a_container_without_a_namespace_of_its_own(machine):
    machine.see("4:memory:/docker/abc\n", "/docker/abc", "cgroup", "rw,memory")
    machine.limit(".", "memory.limit_in_bytes", 300 * MIB)
    assert memory_limit(machine.process) == 300 * MIB


def test_other_controllers_of_version_1_do_not_matter(machine):
    machine.see("4:cpu:/docker/abc\n", "/", "cgroup", "rw,cpu")
    machine.limit("docker/abc", "memory.limit_in_bytes", 300 * MIB)
    assert memory_limit(machine.process) is None


def test_where_nothing_is_mounted_there_is_no_limit(machine, tmp_path):
    assert memory_limit(tmp_path / "none") is None
    machine.see("0::/\n", "/", "cgroup2")
    assert memory_limit(machine.process) is None


@pytest.mark.parametrize(
    ("limit", "pool"),
    [("max", 64 * MIB), (GIB, 64 * MIB), (100 * MIB, 25 * MIB), (8 * MIB, 4 * MIB)],
)
def test_a_quarter_of_the_limit_is_affordable_and_never_less_than_works(machine, limit, pool):
    machine.see("0::/\n", "/", "cgroup2")
    machine.limit(".", "memory.max", limit)
    assert affordable(64 * MIB, process=machine.process) == pool


def test_this_machine_can_be_asked():
    assert memory_limit() is None or memory_limit() > 0
