r"""Rewards by name: functions of a response and the true answer.

Names of this module's own are in `REWARDS`. `package.module:function` is the user's function, imported from the Python
path: it is the user's code, run as any other program of theirs, so take such a name only from a config you trust.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple

from internvl_jax.errors import InputError
from internvl_jax.grading import answers, kinds


class Score(NamedTuple):
    """What one response is worth.

    Attributes:
      reward: what training maximises.
      accuracy: 1 if the answer is right, else 0.
      format: 1 if the response has the asked form, else 0.
      error: why it could not be graded (all else is 0 then).
    """

    reward: float
    accuracy: float
    format: float
    error: str | None = None


Reward = Callable[[str, str], Score]


def is_right(given: str, truth: str) -> bool:
    """Is a final answer the true one: the same choice, date, list, quantity or words, or else equal by mathematics?

    Raises:
      InputError: only mathematics can tell, and math-verify isn't installed.
    """
    return kinds.same(given, truth)


def mmpr(response: str, truth: str) -> Score:
    r"""0.9 accuracy + 0.1 format, as InternVL3.5's GSPO on MMPR-Tiny (verl/utils/reward_score/geo3k.py).

    As there, accuracy is that of the last `\boxed{}` of the whole response, thinking included, whatever its form; and
    the form is `<think>.*</think>.*\\boxed\{.*\}.*`, `.` matching anything. Boxes side by side are one list here. The
    release compares answers with mathruler 0.1.0; where `is_right` differs from it is listed in
    tests/grading/rewards_test.py.
    """
    given = answers.boxed(response)
    accuracy = float(given is not None and is_right(given, truth))
    form = float(_in_order(response, (answers.THINK, answers.THINK_END, r"\boxed{", "}")))
    return Score(0.9 * accuracy + 0.1 * form, accuracy, form)


def answer(response: str, truth: str) -> Score:
    """Accuracy of the final answer, wherever `answers.final_answer` finds it; the form is that there is one. A sentence
    as an answer is right, too, if what it says of its subject is: "The car is red."
    """
    given = answers.final_answer(response)
    readings = [] if given is None else [given, answers.predicate(given)]
    accuracy = float(any(is_right(reading, truth) for reading in readings if reading is not None))
    return Score(accuracy, accuracy, float(given is not None))


def exact(response: str, truth: str) -> Score:
    """1 if all that follows the thinking equals the truth but for case and surrounding space."""
    said = answers.after_thinking(response)
    accuracy = float(said is not None and said.strip().lower() == truth.strip().lower())
    return Score(accuracy, accuracy, float(said is not None))


REWARDS: dict[str, Reward] = {"mmpr": mmpr, "answer": answer, "exact": exact}
MATHEMATICAL = ("mmpr", "answer")  # those that may need math-verify


def get_reward(name: str) -> Reward:
    """The reward of a name; see the top of this module.

    Raises:
      InputError: there is none of that name.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise InputError(f"no reward is called {name!r}; take one of {', '.join(REWARDS)} or package.module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise InputError(f"reward {name!r}: {module} can't be imported ({error}); is it on the Python path?") from error
    except AttributeError:
        raise InputError(f"reward {name!r}: {module} has no {function}; name one of its functions") from None
    if not callable(found):
        raise InputError(f"reward {name!r} is no function; give one of (response, truth) that returns a Score")
    return found


def _in_order(text: str, parts: tuple[str, ...]) -> bool:
    """`text` begins with the first part, and the others follow in order. Linear, where a regular expression of `.*`
    takes the cube of the length of a looping response."""
    at = len(parts[0])
    if not text.startswith(parts[0]):
        return False
    for part in parts[1:]:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True
