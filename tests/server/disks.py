"""Disks that tell what was asked of them."""

import os
import stat

from zcserver.server.disk import Disk


class RecordingDisk(Disk):
    """Notes each call with what it was about: upload, target directory, or names."""

    def __init__(self):
        self.calls = []
        self.upload = None

    def create(self, name, directory):
        self.upload = super().create(name, directory)
        self.calls.append("create")
        return self.upload

    def write(self, fd, pieces, offset):
        self.calls.append("write")
        return super().write(fd, pieces, offset)

    def set_mode(self, fd, mode):
        self.calls.append("mode")
        super().set_mode(fd, mode)

    def set_mtime(self, fd, mtime_ns):
        self.calls.append("mtime")
        super().set_mtime(fd, mtime_ns)

    def sync(self, fd):
        self.calls.append("sync directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync file")
        super().sync(fd)

    def rename(self, source, source_directory, target, target_directory):
        self.calls.append(f"rename over {target.decode()}")
        super().rename(source, source_directory, target, target_directory)

    def rename_new(self, source, source_directory, target, target_directory):
        self.calls.append(f"rename to new {target.decode()}")
        super().rename_new(source, source_directory, target, target_directory)

    def make_directory(self, name, directory):
        self.calls.append(f"make {name.decode()}")
        super().make_directory(name, directory)

    def remove(self, name, directory):
        self.calls.append(f"remove {name.decode()}")
        super().remove(name, directory)

    def remove_directory(self, name, directory):
        self.calls.append(f"remove {name.decode()}")
        super().remove_directory(name, directory)
