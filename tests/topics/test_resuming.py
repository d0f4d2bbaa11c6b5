"""Connections break, again and again: nothing is lost, nothing comes twice, and what is missing is told."""

import anyio
import pytest

import zcserver
from tests.raw_peer import deadline, until
from tests.topics.line import Line
from tests.topics.wire import publisher, serving, subscriber
from zcserver.client import Missing
from zcserver.topic_protocol import SUPERSEDED, Reason
from zcserver.topics import Topics, TopicSettings

pytestmark = pytest.mark.anyio
SIZE = 40_000


def content(number):
    return number.to_bytes(8, "big") * (SIZE // 8)


@pytest.mark.parametrize("whose", ["server", "client"])
async def test_a_subscriber_cut_off_twenty_times_sees_each_number_once(make_context, whose):
    rounds, each = 20, 5
    async with serving(make_context) as served, Line(served, make_context) as line:
        topic = served.topics.topic("/t")
        subscription = line.client.subscribe("/t", on_retry=line.retries.append)
        async with subscription:
            seen = []
            for number in range(rounds + 1):
                for _ in range(each):
                    await topic.publish(content(topic.next))
                while subscription.reconnections < number:
                    seen.append(await anext(subscription))
                if number == rounds:
                    break
                # Some of it is on its way, some of it has come and was not taken.
                seen += [await anext(subscription) for _ in range(number % 3)]
                if whose == "server":
                    line.break_at_the_server()
                else:
                    line.client.connection.abort()
            while len(seen) < (rounds + 1) * each:
                seen.append(await anext(subscription))
        assert [message.sequence for message in seen] == list(range(1, (rounds + 1) * each + 1))
        assert all(bytes(message) == content(message.sequence) for message in seen)
        assert not any(message.missed for message in seen)
        assert subscription.reconnections == rounds
        assert len(line.retries) >= rounds


async def test_a_subscriber_that_was_away_too_long_is_told_exactly_what_it_missed(make_context):
    async with serving(make_context, TopicSettings(retain_count=3)) as served:
        topic = served.topics.topic("/t")
        async with Line(served, make_context) as line, line.client.subscribe("/t") as subscription:
            await topic.publish(b"1")
            assert (await anext(subscription)).sequence == 1
            line.break_at_the_server()
            for _ in range(9):
                await topic.publish(b"x")
            message = await anext(subscription)
            assert message.sequence == 8
            assert message.missed == (Missing(2, 7, Reason.NOT_RETAINED),)
            assert [(await anext(subscription)).sequence for _ in range(2)] == [9, 10]
            assert subscription.missed == 6
            assert str(message.missed[0]) == "missing 2 to 7 (not retained)"


@pytest.mark.parametrize(
    ("published", "missing", "retained"),
    [(1, (), [b"1"]), (5, (Missing(1, 2, Reason.NOT_RETAINED),), [b"3", b"4", b"5"])],
)
async def test_a_server_that_was_restarted_counts_anew_and_says_so(
    make_context, published, missing, retained
):
    context = make_context()
    with deadline():
        topics = Topics(context)
        async with (
            zcserver.serve(topics.handle, port=0, context=context) as first,
            zcserver.Client(f"zc://127.0.0.1:{first.port}/", context=make_context()) as client,
            client.subscribe("/t") as subscription,
        ):
            await topics.topic("/t").publish(b"old")
            assert bytes(await anext(subscription)) == b"old"
            topics.close()
            await first.aclose()
            again = Topics(context, TopicSettings(retain_count=3))
            async with zcserver.serve(again.handle, port=first.port, context=context):
                for number in range(1, 1 + published):
                    await again.topic("/t").publish(b"%d" % number)
                messages = [await anext(subscription) for _ in range(min(published, 3))]
                assert [bytes(message) for message in messages] == retained
                restarted = Missing(2, None, Reason.RESTARTED)
                assert messages[0].missed == (restarted, *missing)
                assert not any(message.missed for message in messages[1:])
                again.close()


async def test_a_message_that_is_refused_does_not_stand_in_the_way_of_later_ones(make_context):
    settings = TopicSettings(retain_count=1, block=True)
    context = make_context()
    large = bytes(2 << 20)
    with deadline():
        topics = Topics(context, settings)
        async with (
            zcserver.serve(topics.handle, port=0, context=context) as first,
            zcserver.Client(f"zc://127.0.0.1:{first.port}/", context=make_context()) as client,
        ):
            topic, writer = topics.topic("/t"), client.publisher("/t")
            async with client.subscribe("/t", policy="block", name="w"):
                await client.publish("/t", b"1")
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client.publish, "/t", large)
                    await until(lambda: topic._moved is not None)
                    tasks.cancel_scope.cancel()
                await writer.publish(large)  # this one has gone out, too, and is not accepted
                topics.close()
            await first.aclose()
            again = Topics(context, TopicSettings(retain_bytes=1 << 20))
            async with zcserver.serve(again.handle, port=first.port, context=context):
                with pytest.raises(zcserver.StreamResetError, match="2097152 bytes"):
                    await client.publish("/t", b"small")
                await client.publish("/t", b"small")
                assert again.topic("/t").next == 2
                for operation in (writer.flush(), writer.publish(b"small"), writer.acquire(1)):
                    with pytest.raises(zcserver.StreamResetError, match="2097152 bytes"):
                        await operation
                assert writer.is_closed
                again.close()


async def test_a_publisher_cut_off_twenty_times_leaves_no_duplicate_and_no_hole(make_context):
    rounds, each = 20, 6
    async with serving(make_context, TopicSettings(retain_bytes=64 << 20)) as served:
        topic = served.topics.topic("/t")
        async with Line(served, make_context) as line:
            async with line.client.publisher("/t", on_retry=line.retries.append) as writer:
                for number in range(1, rounds * each + 1):
                    if number % 2:
                        buffer = await writer.acquire(SIZE)
                        buffer.view[:] = content(number)
                        await writer.publish(buffer)
                    else:
                        await writer.publish(content(number) if number % 4 else b"%d" % number)
                    if number % each == 0:
                        if number % 4:
                            await until(lambda number=number: topic.next > number - 3)
                        line.break_at_the_server()
                await writer.flush()
                assert writer.accepted == rounds * each
                assert writer.reconnections >= rounds - 1
            assert topic.next == rounds * each + 1
            async with line.client.subscribe("/t", start="earliest") as subscription:
                for number in range(1, rounds * each + 1):
                    message = await anext(subscription)
                    small = number % 4 == 0
                    assert bytes(message) == (b"%d" % number if small else content(number))
    stats = served.context.pool.stats()
    assert (stats.in_flight, stats.filling) == (0, 0)


async def test_a_buffer_can_be_acquired_although_the_connection_is_lost(make_context):
    async with (
        serving(make_context) as served,
        Line(served, make_context) as line,
        line.client.publisher("/t", on_retry=line.retries.append) as writer,
    ):
        for number in range(1, 4):
            buffer = await writer.acquire(SIZE)
            buffer.view[:] = content(number)
            await writer.publish(buffer)
            await writer.flush()
            line.client.connection.abort()
        assert served.topics.topic("/t").next == 4
        assert writer.reconnections == len(line.retries) == 2


async def test_a_buffer_goes_by_reference_on_its_own_connection_and_as_a_copy_on_the_next(make_context):
    async with (
        serving(make_context) as served,
        Line(served, make_context) as line,
        line.client.publisher("/t") as writer,
    ):
        for referenced in (0, 1 << 20):
            buffer = await writer.acquire(1 << 20)
            if not referenced:
                line.break_at_the_server()
                await until(lambda: line.client.connection.is_closed)
            await (await writer.publish(buffer)).wait()
            connection = line.client.connection
            assert connection.statistics.reference_bytes == referenced * connection.context.by_reference


async def test_a_buffer_is_waited_for_while_subscribers_block(make_context):
    size, most = 512 * 1024, 3  # so many fit into the publisher's pool
    settings = TopicSettings(retain_count=1, block=True)
    async with serving(make_context, settings) as served:
        reader = await subscriber(await served.connect(), policy="block", name="w")
        context = make_context(pool_size=2 << 20, memory_seconds=0)
        published = []

        async def publish():
            address = f"zc://127.0.0.1:{served.server.port}/"
            async with zcserver.Client(address, context=context) as client, client.publisher("/t") as writer:
                for number in range(1, 4 * most):
                    await writer.publish(await writer.acquire(size))
                    published.append(number)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish)
            await until(lambda: len(published) == most)
            for number in range(1, 4 * most):
                assert (await reader.take(1))[0][0] == number
                await reader.stream.commit(reader.messages)


async def test_a_publisher_known_by_name_goes_on_after_a_restart_of_its_program(make_context):
    async with serving(make_context) as served:
        for number in range(3):
            async with (
                Line(served, make_context) as line,
                line.client.publisher("/t", name="camera") as writer,
            ):
                publication = await writer.publish(b"%d" % number)
                await publication.wait()
                assert publication.sequence == number + 1
        assert served.topics.topic("/t").accepted == {"camera": 3}


async def test_of_too_many_publishers_the_one_silent_for_longest_is_forgotten(make_context, monkeypatch):
    monkeypatch.setattr("zcserver.topics.topic._NAMES", 3)
    async with serving(make_context) as served:
        connection = await served.connect()
        for name in ("a", "b", "c", "a", "d"):
            writer = await publisher(connection, name=name)
            await writer.send(b"x")
            await writer.accepted()
        known = {name: (await publisher(connection, name=name)).sequence - 1 for name in "abcd"}
        assert known == {"a": 2, "b": 0, "c": 1, "d": 1}


async def test_what_a_publisher_sends_again_is_accepted_once_and_a_hole_is_refused(make_context):
    async with serving(make_context) as served:
        topic = served.topics.topic("/t")
        connection = await served.connect()
        writer = await publisher(connection, name="p")
        for sequence in (1, 2, 2, 1, 3):
            await writer.send(content(sequence), sequence=sequence)
        await writer.accepted()
        assert (topic.next, topic.accepted) == (4, {"p": 3})
        again = await publisher(connection, name="p")
        assert again.sequence == 4
        with pytest.raises(zcserver.StreamResetError) as caught:
            await writer.stream.wait_committed(1000)
        assert caught.value.code == SUPERSEDED
        await again.send(content(5), sequence=5)
        with pytest.raises(zcserver.StreamResetError, match=r"goes on with 5, but the last.*is 3"):
            await again.accepted()
        stats = served.context.pool.stats()
        assert stats.filling == 0


async def test_a_worker_that_dies_gets_again_what_it_had_not_committed(make_context):
    async with serving(make_context) as served:
        topic = served.topics.topic("/t")
        for number in range(1, 41):
            await topic.publish(b"%d" % number)
        taken = []
        for life in range(20):
            async with Line(served, make_context) as line:
                subscription = line.client.subscribe("/t", start="committed", name="worker")
                first = await anext(subscription)
                second = await anext(subscription)
                assert first.sequence == (taken[-1] + 1 if taken else 1)
                taken.append(first.sequence)
                await first.commit()
                if life % 2:
                    taken.append(second.sequence)
                    await second.commit()
                    await subscription.aclose()
                    position = second.sequence
                else:
                    position = first.sequence
                    await until(lambda position=position: topic.positions.get("worker") == position)
                    line.client.connection.abort()
        assert taken == list(range(1, 31))
        assert topic.positions == {"worker": 30}


async def test_a_commit_is_carried_over_to_the_next_connection(make_context):
    async with serving(make_context) as served, Line(served, make_context) as line:
        topic = served.topics.topic("/t")
        async with line.client.subscribe("/t", name="w") as subscription:
            await topic.publish(b"1")
            message = await anext(subscription)
            line.break_at_the_server()
            await until(lambda: line.client.connection.is_closed)
            await message.commit()
            await topic.publish(b"2")
            assert (await anext(subscription)).sequence == 2
            assert topic.positions == {"w": 1}


async def test_too_many_topics_is_a_refusal_that_leaves_the_connection_to_others(make_context):
    async with serving(make_context, max_topics=1) as served, Line(served, make_context) as line:
        connection = line.client.connection
        subscription = line.client.subscribe("/t")
        await subscription.open()
        for refused in (line.client.subscribe("/u").open(), line.client.publish("/u", b"x")):
            with pytest.raises(zcserver.StreamResetError, match="has 1 topics already"):
                await refused
        with pytest.raises(zcserver.StreamResetError):
            await anext(line.client.subscribe("/u", on_retry=line.retries.append))
        await served.topics.topic("/t").publish(b"1")
        assert (await anext(subscription)).sequence == 1
        assert (line.client.connection, line.retries) == (connection, [])


async def test_one_off_messages_and_limits_of_the_client(make_context):
    settings = TopicSettings(retain_bytes=1 << 20)
    async with serving(make_context, settings) as served, Line(served, make_context) as line:
        await line.client.publish("/t", b"one", key="k")
        await line.client.publish("/t", content(2))
        assert served.topics.topic("/t").next == 3
        with pytest.raises(zcserver.MessageTooLargeError, match=r"1048577 bytes .*1048576 bytes"):
            await line.client.publish("/t", bytes((1 << 20) + 1))
        with pytest.raises(zcserver.MisuseError, match="key"):
            await line.client.publish("/t", b"", key="k" * 2000)
        messages = line.client.subscribe("/t", start=1)
        assert [bytes(await anext(messages)) for _ in range(2)] == [b"one", content(2)]
        await messages.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(messages)
