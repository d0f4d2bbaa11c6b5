"""Several messages side by side in one buffer, each behind room for its header: sent as they lie there."""

from operator import index as as_index
from typing import SupportsIndex

from zcserver.errors import BufferStateError, MisuseError
from zcserver.memory import Buffer
from zcserver.memory.buffer import FILLING
from zcserver_protocol.frames import HEADER_SIZE


class Batch:
    """Pool memory for several messages of one stream, which are sent and acknowledged together.

    Get it by :meth:`Connection.acquire_batch`. ``add`` a message and fill the view that it returns, until
    nothing fits any more or nothing is left to say; then send the batch. Otherwise call :meth:`release`, or
    use ``with``: leaving the block releases it unless it was sent.

    A message takes its bytes and 32 more for its header. The kernel is given pieces of up to 1 MiB however
    small the messages are: so even small ones need not be copied. One completion answers for all of them (if
    it fails, some may have arrived), and all of the memory comes home when it resolves. ``ends`` tells where
    each message ends in ``buffer`` (offsets in bytes).
    """

    __slots__ = ("_views", "buffer", "ends")

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self.ends: list[int] = []
        self._views: list[memoryview] = []

    def add(self, nbytes: SupportsIndex) -> memoryview | None:
        """The next message: a writable view of its ``nbytes`` bytes (format ``B``); None if it does not fit.

        The view ends when the batch is sent; should that be refused because of an array of it, fetch it anew
        from ``batch.buffer.view``. Raises MisuseError for a message that would not fit into an empty batch
        either, and BufferStateError once the batch was sent or released.
        """
        buffer, ends = self.buffer, self.ends
        if buffer.state != FILLING:
            raise BufferStateError(f"cannot add a message to {self!r}: acquire a new one")
        start = ends[-1] + HEADER_SIZE if ends else HEADER_SIZE
        end = start + as_index(nbytes)
        if end < start or end > buffer.nbytes:
            if ends and end >= start:
                return None
            raise MisuseError(
                f"a message of {nbytes} bytes and its header of {HEADER_SIZE} do not fit into this batch of "
                f"{buffer.nbytes} bytes: acquire a larger one"
            )
        view = buffer.view[start:end]
        ends.append(end)
        self._views.append(view)
        return view

    def start(self, number: int) -> int:
        """Where message ``number`` (from 0) begins in the buffer; its header lies right before."""
        return self.ends[number - 1] + HEADER_SIZE if number else HEADER_SIZE

    def __len__(self) -> int:
        """How many messages were added."""
        return len(self.ends)

    def seal(self, allow_views: bool = False) -> None:
        """As :meth:`Buffer.seal`, for the views of all messages. MisuseError if there is none."""
        if not self.ends:
            raise MisuseError("this batch has no message: add one before it is sent, or release it")
        self._end_views()
        self.buffer.seal(allow_views)

    def release(self) -> None:
        """Give the memory back unsent, as :meth:`Buffer.release` does."""
        self._end_views()
        self.buffer.release()

    def _end_views(self) -> None:
        for view in self._views:
            try:
                view.release()
            except BufferError:  # an array of it is alive: the buffer will see that, too
                continue
        self._views.clear()

    def __enter__(self) -> "Batch":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.buffer.state == FILLING:
            self.release()

    def __repr__(self) -> str:
        return f"<Batch of {len(self.ends)} messages in {self.buffer!r}>"
