"""What all topics of a server keep together: half of the pool, and less when somebody needs the memory.

Retained messages are a cache. So that they stop nobody, the topic that keeps most lets go of its oldest
message when there is no room: for a message of any topic, or for whoever waits for memory of the pool.
Messages that are still on their way in have the other half, lest slow publishers use up what is retained.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from zcserver.memory import Pool

if TYPE_CHECKING:
    from .topic import Topic


class Retention:
    """The windows of ``topics``, by name. ``pinned``: see :class:`~zcserver.topics.TopicSettings`."""

    def __init__(self, topics: dict[str, "Topic"], pool: Pool, pinned: int) -> None:
        self._topics = topics
        self._pool = pool
        self._pinned = pinned
        self._waiting: set[Topic] = set()
        self._arriving = 0
        pool.reclaimers.append(self.reclaim)

    def close(self) -> None:
        """Whoever waits for memory goes on without what is still kept: subscribers are to have that."""
        if self.reclaim in self._pool.reclaimers:
            self._pool.reclaimers.remove(self.reclaim)

    def make_room(self, topic: "Topic", nbytes: int) -> bool:
        """Make room for one more message of the topic; False while blocking subscribers need what is kept.

        A topic that keeps nothing may have one message even then, so that those of others hardly delay it.
        """
        size = self._pool.size
        while (kept := sum(each.retained_bytes for each in self._topics.values())) + nbytes > size // 2:
            if self._evict(lambda each: each.retained_bytes):
                continue
            if topic.first == topic.next and kept + nbytes <= size:
                break
            self._waiting.add(topic)
            return False
        return True

    def admit(self, nbytes: int) -> bool:
        """Whether a message that begins may take memory of the pool; if so, ``arrived`` is due for it."""
        if self._arriving + nbytes > self._pool.size // 2:
            return False
        self._arriving += nbytes
        return True

    def arrived(self, nbytes: int) -> None:
        """The message is complete and taken, or was given up."""
        self._arriving -= nbytes

    def reclaim(self) -> bool:
        """Let go of one message in pool memory; False when there is none that can go."""
        return self._evict(lambda each: each.placed_bytes)

    def moved(self) -> None:
        """A subscriber has got further: something more can go, perhaps."""
        while self._waiting:
            self._waiting.pop().wake_publishers()

    def cut_loose(self) -> None:
        """End connections of subscribers that hold too much of what has left the windows."""
        while sum(each.pinned for each in self._topics.values()) > self._pinned:
            worst = max(self._topics.values(), key=lambda each: each.pinned)
            if not worst.end_slowest(self._pinned):
                return

    def _evict(self, size: Callable[["Topic"], int]) -> bool:
        keeping = sorted(filter(size, self._topics.values()), key=size, reverse=True)
        return any(topic.evict() for topic in keeping)
