"""Live topics: what one publishes, many subscribers get, from the same pages.

``topic``         a topic's retention window, who may take part in it, and what slow subscribers pin
``retention``     what all topics keep together, and who gives way when memory is short
``publishing``    one publisher's stream: into pool memory once, each message accepted once
``subscription``  one subscriber's stream: where it is, what it misses
``topics``        the handler that joins them

    async with zcserver.serve(topics.handle, context=context): ...
"""

from .topic import Topic, TopicSettings
from .topics import Topics

__all__ = ["Topic", "TopicSettings", "Topics"]
