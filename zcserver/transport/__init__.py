"""asyncio's transport interface over ZCP/1: what ``loop.create_connection`` and its kin do, zero-copy.

``link.py``        the driver: a socket, its engine, the one stream that carries the bytes
``transport.py``   ``ZeroCopyTransport``: what asyncio's transports mean
``output.py``      who owns what was written; how much the peer has not acknowledged
``input.py``       received pieces into the protocol
``connecting.py``  ``serving.py``  ``streams.py``  ``sending_files.py``: asyncio's functions
``shared.py``      the context of those who bring none
"""

from .connecting import connect_accepted_socket, create_connection, create_unix_connection
from .sending_files import sendfile
from .serving import ZeroCopyServer, create_server, create_unix_server
from .streams import open_connection, open_unix_connection, start_server, start_unix_server
from .transport import ZeroCopyTransport

__all__ = [
    "ZeroCopyServer",
    "ZeroCopyTransport",
    "connect_accepted_socket",
    "create_connection",
    "create_server",
    "create_unix_connection",
    "create_unix_server",
    "open_connection",
    "open_unix_connection",
    "sendfile",
    "start_server",
    "start_unix_server",
]
