"""A process that opens a stream, takes a little, says so, and reads no more: to be killed.

python -m tests.silent_peer PORT
"""

import socket
import sys

from zcserver_protocol.codec import Codec, Limits
from zcserver_protocol.events import Data


def main(port: int) -> None:
    sock = socket.create_connection(("127.0.0.1", port))
    codec = Codec("client", Limits(), 0.0)
    sock.sendall(codec.take_control())
    while codec.peer is None:
        codec.feed(sock.recv(codec.needs, socket.MSG_WAITALL))
    codec.open("GET", "/", {}, 1 << 40)
    sock.sendall(codec.take_control())
    while not codec.payload_left:
        event = codec.feed(sock.recv(codec.needs, socket.MSG_WAITALL))
        assert event is None or not isinstance(event, Data) or event.length
    sys.stdout.write("reading no more\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]))
