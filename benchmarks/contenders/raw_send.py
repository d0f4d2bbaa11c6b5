"""C: send()."""

from benchmarks.contenders.raw import become, unavailable

__all__ = ["unavailable"]

if __name__ == "__main__":
    become("copy")
