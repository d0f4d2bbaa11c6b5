"""zcserver: as many messages as a batch holds, sent by one call."""

from __future__ import annotations

from benchmarks.contenders.zcserver_messages import receive, unavailable
from benchmarks.side import BATCH, HOST, Run, main, measured, stamp, tune_sockets

__all__ = ["unavailable"]
HEADER = 32


async def send(run: Run) -> None:
    import zcserver

    room = max(1, BATCH // (run.size + HEADER)) * (run.size + HEADER)
    async with zcserver.connect(HOST, run.port) as connection:
        tune_sockets(run.congestion)
        stream = await connection.open("PUBLISH", "/bench")
        number = 0
        with measured(run):
            while number < run.messages:
                batch = await connection.acquire_batch(room)
                while number < run.messages and (message := batch.add(run.size)) is not None:
                    stamp(message, number)
                    number += 1
                completion = await stream.send(batch)
            await completion.wait()


if __name__ == "__main__":
    main("zcserver-batch", send, receive)
