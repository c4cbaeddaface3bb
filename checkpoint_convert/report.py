"""What a conversion did, as the last line of a launcher."""

import dataclasses
import json
import resource
import sys
import time


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """Attributes:
    tensors, bytes: read from the released checkpoint.
    seconds: wall clock.
    peak_rss: bytes, the most memory that the process has held so far.
    """

    tensors: int
    bytes: int
    seconds: float
    peak_rss: int

    @classmethod
    def since(cls, start: float, tensors: int, size: int) -> "ConversionReport":
        """`start` as `time.perf_counter` gave it."""
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return cls(tensors, size, round(time.perf_counter() - start, 3), peak)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))
