"""C: vmsplice and splice from huge pages, which come home by the receiver's count."""

from benchmarks.contenders.raw import become, unavailable

__all__ = ["unavailable"]

if __name__ == "__main__":
    become("splice")
