"""Whatever comes to a port, nobody dies, hangs or grows; `python -m tests.fuzzing --only=frames` does more of it."""

import logging
import random

from tests.fuzzing.frames import frames, open_ports


def test_bad_frames_hurt_nobody(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    ports = open_ports(tmp_path)
    try:
        for number in range(150):
            frames(random.Random(number), tmp_path, ports)
    finally:
        ports.close()
    assert ports.serving.counters.refused > 150 and ports.victim.counters.lost > 3
