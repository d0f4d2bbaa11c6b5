"""The file server.

``paths``, ``roots``      opening what a peer names, never outside the served directories
``listing``, ``reading``  STAT, LIST, GET, DIGEST
``staging``, ``editing``, ``writing``   PUT, MKDIR, RENAME, REMOVE, for writable servers, through ``disk``
``interrupted``           uploads that lost their client, until they go on
``files``                 the handler that joins them
``access``, ``totals``    a line per request, and what all connections together carried

    with Root("/data") as root:
        async with zcserver.serve(FileServer(root).handle) as server:
            await server.wait_closed()
"""

from .access import AccessLog, Request
from .files import FileServer
from .paths import Root

__all__ = ["AccessLog", "FileServer", "Request", "Root"]
