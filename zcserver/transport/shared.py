"""The context that an event loop's byte streams share when the program gives none."""

import asyncio
import weakref

from zcserver.context import Context

_contexts: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Context]" = weakref.WeakKeyDictionary()


def context_of(loop: asyncio.AbstractEventLoop) -> Context:
    """One with the default settings, which lives as long as the loop: memory of dead peers is held on."""
    context = _contexts.get(loop)
    if context is None:
        context = _contexts[loop] = Context()
        weakref.finalize(loop, context.close).atexit = False
    return context
