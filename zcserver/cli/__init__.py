"""The ``zcserver`` command. Only this package imports uvloop, typer and rich.

``exits``     exit codes, and what each error says and does
``loop``      uvloop, and an orderly end on Ctrl-C
``standard``  standard input, output and error, even where they are closed
``options``   what several commands share: sizes, lanes, how amounts are written
``serve``, ``get``, ``doctor``, ``demo``   the commands
"""

from .app import main

__all__ = ["main"]
