"""Which event takes a connection or one half of a stream from which state to which (SPEC.md, "States").

What is not in a table is illegal: in a frame it ends the connection, as a call it raises and changes nothing.
States are plain ints because the hot path compares them.
"""

from typing import Final

# -- connection ------------------------------------------------------------------------------------------

AWAIT_PREFACE: Final = 0
AWAIT_HELLO: Final = 1
ESTABLISHED: Final = 2
CLOSING: Final = 3  # a GOAWAY was sent or received: no stream is opened any more
CLOSED: Final = 4  # the connection failed or was refused: nothing is legal any more

CONNECTION: Final = {
    (AWAIT_PREFACE, "preface"): AWAIT_HELLO,
    (AWAIT_HELLO, "hello"): ESTABLISHED,
    (ESTABLISHED, "goaway"): CLOSING,
    (CLOSING, "goaway"): CLOSING,
    (AWAIT_PREFACE, "failure"): CLOSED,
    (AWAIT_HELLO, "failure"): CLOSED,
    (ESTABLISHED, "failure"): CLOSED,
    (CLOSING, "failure"): CLOSED,
    (CLOSED, "failure"): CLOSED,
}
CONNECTION_NAMES: Final = ("awaiting the preface", "awaiting HELLO", "established", "closing", "closed")

# -- one half of a stream --------------------------------------------------------------------------------

UNANSWERED: Final = 0  # the accepting end's half before its REPLY
FLOWING: Final = 1
ENDED: Final = 2
ABORTED: Final = 3

HALF: Final = {
    (UNANSWERED, "reply"): FLOWING,
    (FLOWING, "data"): FLOWING,
    (FLOWING, "end"): ENDED,
    (UNANSWERED, "reset"): ABORTED,
    (FLOWING, "reset"): ABORTED,
    (ENDED, "reset"): ABORTED,
}
HALF_NAMES: Final = ("not replied to yet", "flowing", "ended", "reset")

# -- framing ---------------------------------------------------------------------------------------------

# What `feed` gets next.
AT_PREFACE: Final = 0
AT_FIRST_HEADER: Final = 1
AT_HEADER: Final = 2
AT_BODY: Final = 3
AT_SKIPPED_BODY: Final = 4
AT_END: Final = 5  # nothing, the connection is dead
