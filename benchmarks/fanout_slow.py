"""One subscriber among many is stopped for a while: who gets what, and how long the others wait at worst.

    python -m benchmarks.fanout_slow
    python -m benchmarks.fanout_slow --seconds 10 --others 15 --rate 50

For each policy a server, a publisher at a steady rate, the others in one process and the one that is stopped
(SIGSTOP) in another. The others have the policy `drop-oldest`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time

import zcserver
from zcserver.topic_protocol import Policy
from zcserver.topics import Topics, TopicSettings

SIZE = 1 << 20
_RETAINED = 16
_BEFORE = 1.0
"""Seconds that all run before the one is stopped, and again after it goes on."""


async def follow(port: int, policy: str, last: int) -> dict[str, object]:
    """One subscriber to the end: what it got and missed, and the longest time between two messages (s)."""
    got, gap, before = 0, 0.0, 0.0
    ended = ""
    async with zcserver.Client(f"zc://127.0.0.1:{port}/") as client:
        subscription = client.subscribe("/frames", policy=policy, start=1, retry_seconds=0)
        with contextlib.suppress(StopAsyncIteration):
            try:
                while (message := await anext(subscription)).sequence <= last:
                    now = time.perf_counter()
                    gap = max(gap, now - before) if before else 0.0
                    before = now
                    got += 1
                    if message.sequence == last:
                        break
            except zcserver.TransferError as error:
                ended = str(error)
    return {"got": got, "missed": subscription.missed, "gap": gap, "ended": ended}


async def subscribe(port: int, policy: str, last: int, count: int) -> None:
    print(json.dumps(await asyncio.gather(*(follow(port, policy, last) for _ in range(count)))), flush=True)


async def measure(policy: Policy, seconds: float, others: int, rate: float) -> str:
    """One policy; a row of the table."""
    last = int((seconds + 2 * _BEFORE) * rate)
    settings = TopicSettings(retain_bytes=_RETAINED * SIZE, retain_count=_RETAINED, block=True)
    with zcserver.Context(pool_size=96 << 20) as context, contextlib.ExitStack() as stack:
        topics = Topics(context, settings)
        async with zcserver.serve(topics.handle, port=0, context=context) as server:
            topic = topics.topic("/frames")
            processes = []
            for count, which in ((others, Policy.DROP_OLDEST), (1, policy)):
                command = [sys.executable, "-m", "benchmarks.fanout_slow", "--subscribe"]
                words = map(str, (server.port, which.value, last, count))
                process = subprocess.Popen(  # noqa: ASYNC220 – a few milliseconds before anything is measured
                    [*command, *words], stdout=subprocess.PIPE, text=True
                )
                stack.callback(process.kill)
                processes.append(process)
            while len(topic.subscriptions) <= others:  # noqa: ASYNC110 – nothing tells
                await asyncio.sleep(0.01)
            begin = time.perf_counter()
            stopped = waited = 0.0
            for number in range(last):
                await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter()))
                now = time.perf_counter() - begin
                if not stopped and now >= _BEFORE:
                    processes[1].send_signal(signal.SIGSTOP)
                    stopped = now
                    asyncio.get_running_loop().call_later(seconds, processes[1].send_signal, signal.SIGCONT)
                buffer = await topic.acquire(SIZE)
                buffer.view[:8] = number.to_bytes(8, "big")
                before = time.perf_counter()
                await topic.publish(buffer)
                waited = max(waited, time.perf_counter() - before)
            outcomes = []
            for process in processes:
                said, _ = await asyncio.to_thread(process.communicate)
                outcomes.append(json.loads(said))
            topics.close()
    rest, (slow,) = outcomes
    cells = [
        policy.value,
        str(last),
        f"{slow['got']} got, {slow['missed']} missed" + (", disconnected" if slow["ended"] else ""),
        f"{min(each['got'] for each in rest)}–{max(each['got'] for each in rest)}",
        f"{1000 * max(each['gap'] for each in rest):.0f} ms",
        f"{1000 * waited:.0f} ms",
    ]
    return "| " + " | ".join(cells) + " |"


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fanout_slow", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="for how long it is stopped")
    parser.add_argument("--others", type=int, default=15)
    parser.add_argument("--rate", type=float, default=50.0, help="frames of 1 MiB per second")
    parser.add_argument("--policies", nargs="+", type=Policy, default=list(Policy))
    parser.add_argument("--subscribe", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.subscribe:
        port, policy, last, count = options.subscribe
        await subscribe(int(port), policy, int(last), int(count))
        return
    print("| policy | published | stopped subscriber | others got | others' worst gap | longest publish |")
    print("|---|---|---|---|---|---|")
    for policy in options.policies:
        print(await measure(policy, options.seconds, options.others, options.rate), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
