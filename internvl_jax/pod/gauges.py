"""A few numbers of every process, for process 0 to look at.

They go through the store that JAX's processes share: a collective would wait for the programs before it.
"""

import itertools
import json
from collections.abc import Sequence

import jax
from jax._src.distributed import global_state  # see agreement.py

_OPENED = itertools.count()  # processes open theirs in the same order
_WAIT = 10_000  # milliseconds for numbers that should be there


class Gauges:
    """Opened by all processes of a run, which tell their numbers in the same rounds."""

    def __init__(self) -> None:
        self._prefix, self._round = f"internvl_jax/gauges/{next(_OPENED)}", 0

    def tell(self, values: Sequence[float]) -> list[list[float]]:
        """Tells this process's numbers.

        Returns:
          On process 0, what all processes told: in the round before, so that it need not wait for them; where there is
          one process, in this one. Nothing on the others, in the first round, and where a process has not told its own.
        """
        if global_state.num_processes == 1:
            return [list(values)]
        rank, self._round = global_state.process_id, self._round + 1
        global_state.client.key_value_set(f"{self._prefix}/{self._round}/{rank}", json.dumps(list(values)))
        if rank or self._round == 1:
            return []
        before = f"{self._prefix}/{self._round - 1}"
        try:
            told = [
                json.loads(global_state.client.blocking_key_value_get(f"{before}/{number}", _WAIT))
                for number in range(global_state.num_processes)
            ]
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            return []
        global_state.client.key_value_delete(f"{before}/")
        return told
