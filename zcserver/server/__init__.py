"""The file server.

``paths``    opening what a peer names, never outside the served directory
``listing``  walking it, a page at a time
``files``    the handler: GET, LIST, DIGEST
``totals``   what all connections together carried

    with Root("/data") as root:
        async with zcserver.serve(FileServer(root).handle) as server:
            await server.wait_closed()
"""

from .files import FileServer
from .paths import Root

__all__ = ["FileServer", "Root"]
