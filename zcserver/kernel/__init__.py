"""The Linux under zcserver: the one place that makes system calls for data.

``calls``    the seam: every call on the way of a byte is a method of :class:`Kernel`; raw memory access
``beneath``  opening what is below a directory, and nothing else
``pipe``     a pipe that knows how many bytes it holds, and the pipes that one event loop shares
``probe``    what this machine can do, found out by trying
``doctor``   the same, in words for people and as JSON
``sockets``  options every ZCP/1 socket gets

Nothing here knows of frames, buffers or connections. Import from the modules.
"""

from zcserver.kernel.calls import DEFAULT, Kernel

__all__ = ["DEFAULT", "Kernel"]
