"""asyncio streams: many messages by one `writelines`."""

from __future__ import annotations

import asyncio
import itertools

from benchmarks.contenders.asyncio_streams import receive, unavailable
from benchmarks.side import COPY_BATCH, COPY_RING, Run, dial, main, measured, ring, stamp, tune_sockets

__all__ = ["unavailable"]


async def send(run: Run) -> None:
    reader, writer = await asyncio.open_connection(sock=dial(run))
    tune_sockets(run.congestion)
    count = max(1, COPY_BATCH // run.size)
    # What may stay in the write buffer after `drain` is at the end of a batch: the next one spares it.
    messages = itertools.cycle(ring(run.size, count * run.size + max(run.size, COPY_RING)))
    with measured(run):
        for first in range(0, run.messages, count):
            batch = list(itertools.islice(messages, min(count, run.messages - first)))
            for number, message in enumerate(batch, first):
                stamp(message, number)
            writer.writelines(batch)
            await writer.drain()
        await reader.read()
    writer.close()


if __name__ == "__main__":
    main("asyncio-batch", send, receive)
