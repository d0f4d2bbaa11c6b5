"""``python -m zcserver.cli``: the command without its script."""

from . import main

main()
