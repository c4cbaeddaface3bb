"""A response as a critic of its steps reads it: VisualPRM's released format.

1. A response is split at blank lines into steps (`split_steps`).
2. They become a conversation (`critic_turns`): the first turn has the question and the first step, every later one the
   next step, and the critic has said "+" to each.
3. What the critic thinks of a step stands where it would write its sign, at the last token before it
   (`sign_positions`): so one pass over the conversation scores all steps, as each was seen with those before it alone.

Source: VisualPRM (arXiv 2503.10291), and the released data pipeline (tools/reasoning_data_pipeline).
"""

from collections.abc import Sequence

import numpy as np

from internvl_jax.data.text.templates import Message, Slot, Template
from internvl_jax.data.text.tokenizer import Tokenizer
from internvl_jax.errors import InputError

RIGHT, WRONG = "+", "-"
# What the released critics were trained with.
CRITIC_SYSTEM = """You are an advanced AI assistant, designed to serve as a process supervision model. In this task,\
 I will provide a problem statement followed by the first step of the solution process. For each subsequent turn, I \
will give you a new step in the solution. Your role is to assess whether the solution process is correct up to the \
current step.

- In the **first round**, I will input the problem and the first step of the solution process.
- In **each subsequent round**, I will provide the next step in the solution.

For each step, you should:

- Respond with **"+"** if you believe the solution process is correct up to this step.
- Respond with **"-"** if you detect any issues or errors in the process up to this step.

Please note:
- Only respond with **"+"** or **"-"**. Do not provide any additional explanations, comments, or justifications.

Your task is to verify the accuracy and correctness of each step in the given solution process."""
_HEAD, _FOOT = "### Question:\n", "\n\n### Solution Process:\n"


def split_steps(response: str, most: int | None = None) -> list[str]:
    """The steps of a response: what blank lines part, empty ones too.

    Args:
      most: neighbours are joined, so that there are no more; None: none are.
    """
    steps = response.split("\n\n")
    size = 1 if most is None else -(-len(steps) // most)
    return ["\n\n".join(steps[start : start + size]) for start in range(0, len(steps), size)]


def critic_turns(question: Sequence[str | Slot], steps: Sequence[str]) -> list[Message]:
    """The conversation in which a critic has called every step right.

    Args:
      question: its texts, and where its pictures stand.
    """
    first = (_HEAD, *question, f"{_FOOT}{steps[0]}")
    asked = [Message("user", first), *(Message("user", (step,)) for step in steps[1:])]
    return [turn for each in asked for turn in (each, Message("assistant", (RIGHT,)))]


def critic_record(question: str, steps: Sequence[str], signs: Sequence[str]) -> list[dict[str, str]]:
    """The `conversations` of a released training record: a critic's signs for the first steps, as many as there are.

    Args:
      question: with `<image>` where its pictures stand.
    """
    asked = [f"{_HEAD}{question}{_FOOT}{steps[0]}", *steps[1 : len(signs)]]
    turns = [("system", CRITIC_SYSTEM), *(turn for pair in zip(asked, signs) for turn in zip(("human", "gpt"), pair))]
    return [{"from": speaker, "value": text} for speaker, text in turns]


def sign_positions(tokens_T: np.ndarray, template: Template, tokenizer: Tokenizer) -> np.ndarray:
    """Where the signs are said, int32, one for each step: the last token before each.

    They are looked for among the ids, since vocabularies join line ends to different things.
    """
    head = tokenizer.encode_special(template.assistant_head)
    said = np.array(tokenizer.encode_special(f"{template.assistant_head}{RIGHT}{template.end}{template.after_end}"))
    if len(tokens_T) < len(said):
        return np.zeros(0, np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(tokens_T, len(said))
    starts = np.flatnonzero((windows == said).all(axis=1))
    return (starts + len(head) - 1).astype(np.int32)


def sign_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """The ids of both signs.

    Raises:
      InputError: a vocabulary without them.
    """
    try:
        return tokenizer.token_id(RIGHT), tokenizer.token_id(WRONG)
    except InputError:
        raise InputError(
            f"the tokenizer lacks {RIGHT!r} or {WRONG!r}, a critic's words; give a critic with its own tokenizer files."
        ) from None
