"""A directory served by aiohttp's static route: `python -m benchmarks.aiohttp_files DIR PORT`."""

from __future__ import annotations

import sys

from aiohttp import web

from benchmarks.side import HOST


def main(folder: str, port: int) -> None:
    application = web.Application()
    application.router.add_static("/", folder)
    web.run_app(application, host=HOST, port=port, access_log=None, print=None)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
