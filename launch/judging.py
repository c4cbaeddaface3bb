"""The judge that --judge names."""

import os
import pathlib

from absl import flags

from internvl_jax.evaluation import Endpoint, Judge, KeptJudge

JUDGE = flags.DEFINE_string("judge", None, "where a judge answers OpenAI's API, as http://HOST:PORT/v1; default: none")
JUDGE_MODEL = flags.DEFINE_string(
    "judge_model", None, "its name there, if it has several; its key is $INTERNVL_JUDGE_KEY"
)


def judge(kept: pathlib.Path | None) -> Judge | None:
    """The judge, if there is one; its verdicts go to the file `kept`, and come from there."""
    if JUDGE.value is None:
        return None
    asked = Endpoint(JUDGE.value, JUDGE_MODEL.value or "", os.environ.get("INTERNVL_JUDGE_KEY", ""))
    return asked if kept is None else KeptJudge(asked, kept)
