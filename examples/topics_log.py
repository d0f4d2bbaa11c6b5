"""Log lines to many tails, one of which was away for a while.

    python examples/topics_log.py

A program's log handler publishes each line. A tail that connects again goes on where it was; what the server
no longer has is told to it, line by line counted.
"""

import logging

import anyio

import zcserver
from zcserver.topics import Topics, TopicSettings


class TopicHandler(logging.Handler):
    """Hands lines over to ``forward``, which publishes them: logging itself must not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.send, self.receive = anyio.create_memory_object_stream[str](10_000)

    def emit(self, record: logging.LogRecord) -> None:
        self.send.send_nowait(self.format(record))

    async def forward(self, url: str) -> None:
        async with zcserver.Client(url) as client, client.publisher("/log") as publisher, self.receive:
            async for line in self.receive:
                await publisher.publish(line.encode(), key="app", content_type="text/plain")


async def tail(url: str, start: int, until: str) -> list[str]:
    told = []
    async with zcserver.Client(url) as client, client.subscribe("/log", start=start) as subscription:
        async for message in subscription:
            told += [f"({missing})" for missing in message.missed]
            told.append(bytes(message).decode())
            if told[-1] == until:
                break
    return told


async def main() -> None:
    handler = TopicHandler()
    log = logging.getLogger("app")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    with zcserver.Context() as context:
        topics = Topics(context, TopicSettings(retain_count=50))
        async with zcserver.serve(topics.handle, port=0, context=context) as server:
            url = f"zc://127.0.0.1:{server.port}/"
            tails: list[list[str]] = []

            async def follow() -> None:
                tails.append(await tail(url, 1, "request 40"))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(handler.forward, url)
                async with anyio.create_task_group() as following:
                    for _ in range(5):
                        following.start_soon(follow)
                    for number in range(1, 41):
                        log.info("request %d", number)
                for number in range(41, 101):
                    log.info("request %d", number)
                handler.send.close()
            late = await tail(url, 41, "request 100")
            topics.close()
    assert tails == [[f"request {number}" for number in range(1, 41)]] * 5
    assert late == ["(missing 41 to 50 (not retained))", *(f"request {number}" for number in range(51, 101))]
    print(f"5 tails saw {len(tails[0])} lines each; one came back later: {late[0]}, then the rest")


if __name__ == "__main__":
    anyio.run(main)
