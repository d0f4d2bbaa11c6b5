"""The client of a file server.

``client``     :class:`Client`: every operation as a coroutine
``address``    URLs
``download``, ``partial``   one file to disk, resumed after whatever happened
``upload``     one file, or memory, to the server
``tree*``, ``local_tree``, ``place``, ``selection``   directories, and which of their files are meant
``remote_file``   reading like from a local file
``publish``, ``subscribe``, ``retrying``   topics, across lost connections
``request``, ``progress``, ``hashing``, ``storing``, ``descriptors``   what they share
"""

from .address import Address, UrlError, is_url, parse_url
from .client import Client, Status, client_context
from .progress import ChangedError, Progress, Transferred, TreeReport, VerificationError
from .publish import Publication, Publisher
from .remote_file import RemoteFile
from .retrying import Retry
from .subscribe import Missing, Subscription, TopicMessage
from .tree import local_path

__all__ = [
    "Address",
    "ChangedError",
    "Client",
    "Missing",
    "Progress",
    "Publication",
    "Publisher",
    "RemoteFile",
    "Retry",
    "Status",
    "Subscription",
    "TopicMessage",
    "Transferred",
    "TreeReport",
    "UrlError",
    "VerificationError",
    "client_context",
    "is_url",
    "local_path",
    "parse_url",
]
