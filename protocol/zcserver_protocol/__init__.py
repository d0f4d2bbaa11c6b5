"""ZCP/1 without I/O: bytes in, events out; SPEC.md beside this package is normative."""
