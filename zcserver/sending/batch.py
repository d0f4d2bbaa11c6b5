"""Several messages side by side in one buffer, each behind room for its header: sent as they lie there."""

from typing import Final

from zcserver.errors import BufferStateError, MisuseError
from zcserver.kernel.calls import memory_at, pointer_to
from zcserver.memory import Buffer, BufferState
from zcserver_protocol.frames import HEADER_SIZE

_NOTHING: Final = memoryview(b"")


class Batch:
    """Pool memory for several messages of one stream, which are sent and acknowledged together.

    Get it by :meth:`Connection.acquire_batch`. ``add`` a message and fill the view that it returns, until
    nothing fits any more or nothing is left to say; then send the batch. Otherwise call :meth:`release`, or
    use ``with``: leaving the block releases it unless it was sent.

    A message takes its bytes and 32 more for its header. The kernel is given pieces of up to 1 MiB however
    small the messages are: so even small ones need not be copied. ``ends`` tells where each message ends in
    ``buffer`` (offsets in bytes).
    """

    __slots__ = ("_views", "buffer", "ends", "framed", "writable")

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self.ends: list[int] = []
        self.framed = 0
        """For the sender: how many messages have become frames."""
        self.writable = _NOTHING
        """For the sender: all headers and messages, once sealed."""
        self._views: list[memoryview] = []

    def add(self, nbytes: int) -> memoryview | None:
        """The next message: a writable view of its ``nbytes`` bytes (format ``B``); None if it does not fit.

        Views stay writable until the batch is sent, and end then. Raises MisuseError for a message that would
        not fit into an empty batch either, and BufferStateError after the batch was sent or released.
        """
        ends = self.ends
        start = self.start(len(ends))
        end = start + nbytes
        if nbytes < 0 or end > self.buffer.nbytes:
            if ends and nbytes >= 0:
                return None
            raise MisuseError(
                f"a message of {nbytes} bytes and its header of {HEADER_SIZE} do not fit into this batch of "
                f"{self.buffer.nbytes} bytes: acquire a larger one"
            )
        try:
            view = self.buffer.view[start:end]
        except (AttributeError, ValueError):
            raise BufferStateError(f"cannot add a message to {self!r}: acquire a new one") from None
        ends.append(end)
        self._views.append(view)
        return view

    def start(self, index: int) -> int:
        """Where message ``index`` begins in the buffer; its header lies right before."""
        return self.ends[index - 1] + HEADER_SIZE if index else HEADER_SIZE

    def __len__(self) -> int:
        """How many messages were added."""
        return len(self.ends)

    def seal(self, allow_views: bool = False) -> None:
        """As :meth:`Buffer.seal`, for the views of all messages. MisuseError if there is none."""
        if not self.ends:
            raise MisuseError("this batch has no message: add one before it is sent, or release it")
        for view in self._views:
            try:
                view.release()
            except BufferError:
                break  # an array of it is alive: the buffer will say so
        self.buffer.seal(allow_views)
        self._views.clear()
        # A header is written when its message's turn has come: before that it is not in flight.
        self.writable = memoryview(memory_at(pointer_to(self.buffer.address), self.ends[-1]))

    def release(self) -> None:
        """Give the memory back unsent, as :meth:`Buffer.release` does."""
        self._views.clear()
        self.buffer.release()

    def __enter__(self) -> "Batch":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.buffer.state == BufferState.FILLING:
            self.release()

    def __repr__(self) -> str:
        return f"<Batch of {len(self.ends)} messages in {self.buffer!r}>"
