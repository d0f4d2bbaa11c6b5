"""``python -m zcserver``: the command without its script."""

from zcserver.cli import main

main()
