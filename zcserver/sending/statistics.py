"""What one connection carried, by lane."""

from dataclasses import dataclass


@dataclass(slots=True)
class TransferStatistics:
    """Counters of one connection, in bytes of payload unless named otherwise.

    ``copied_bytes`` is what the kernel copied out of user memory; ``reference_bytes`` and ``file_bytes``
    travelled as references to pages. ``received_copied_bytes`` had to be moved once more in user space.
    """

    reference_bytes: int = 0
    file_bytes: int = 0
    copied_bytes: int = 0
    control_bytes: int = 0
    messages_sent: int = 0
    messages_acknowledged: int = 0
    received_bytes: int = 0
    received_copied_bytes: int = 0
    acknowledgements_sent: int = 0
    congestion_control: str = ""
