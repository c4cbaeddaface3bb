"""A user's graders, as bad as they come: the response says what happens."""

import os
import sys
import time

from internvl_jax.grading import Score


def act(response: str, truth: str):
    if response == "raise":
        raise RuntimeError("no\nidea")
    if response == "sleep":
        time.sleep(60)
    if response == "exit":
        os._exit(3)
    if response == "quit":
        sys.exit("enough")
    if response == "nan":
        return Score(float("nan"), 1.0, 1.0)
    if response == "number":
        return 1.0
    if response == "jax":
        return Score(float("jax" in sys.modules), 0.0, 0.0)
    return Score(float(response == truth), 0.0, float(os.getpid()))


not_a_function = 3
