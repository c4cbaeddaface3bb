"""What a judge is asked where no rule can tell, and the endpoint that may be one.

A judge is a function from a prompt to an answer. What is asked is ours, to the same end as in the official code: scores
with a judge are near published ones, not equal to them.
"""

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping

from internvl_jax.errors import InputError
from internvl_jax.evaluation.suites.options import infer_option
from internvl_jax.evaluation.suites.suite import Judge
from internvl_jax.evaluation.suites.text_matching import yes_or_no

_TRIES, _SECONDS, _PAUSE = 5, 120, 1.0
_OPTION = """Which option of the question below does the answer mean? Reply with its letter alone, or with Z if it \
means none of them.

Question: {question}
Options:
{options}
Answer: {answer}
Letter:"""
_YES_NO = """Does the answer below mean yes or no? Reply with one word: Yes, No or Unknown.

Question: {question}
Answer: {answer}
Reply:"""
_EXTRACT = """What is the final answer of the response below? Reply with it alone: a letter for a choice, a number as \
the question asks for it, otherwise as few words as possible.

Question: {question}
Response: {answer}
Final answer:"""

_LETTERS = """Which options does the response below choose? Reply with their letters alone, in capitals and without \
blanks, as A or AC.

Question: {question}
Response: {answer}
Letters:"""
_GRADE = """How right is the answer below, beside the true one? Reply with a number alone, \
from 0.0 (wrong) to 1.0 (right).

Question: {question}
True answer: {true}
Answer: {answer}
Grade:"""
_LIKENESS = """How much does the answer below mean the same as the true one? Reply with one digit alone: 0 (nothing), \
1 (little), 2 (most of it) or 3 (all of it).

Question: {question}
True answer: {true}
Answer: {answer}
Reply:"""
_SAME = """Does the answer below say the same as the true one? Reply with 1 if it does, else with 0.

Question: {question}
True answer: {true}
Answer: {answer}
Reply:"""


class Endpoint:
    """A judge behind OpenAI's chat API, this project's server or another.

    Args:
      url: up to and with its `/v1`.
      model: the name that it knows the judge by.
      key: for its Authorization header; "" sends none.
    """

    def __init__(self, url: str, model: str, key: str = ""):
        if not url.startswith(("http://", "https://")):
            raise InputError(f"the judge's address is {url!r}; give one that begins with http:// or https://.")
        self._url, self._model, self._key = url.rstrip("/") + "/chat/completions", model, key

    def __call__(self, prompt: str) -> str:
        """The judge's answer, greedily.

        Raises:
          InputError: nobody answers there for half a minute, it refuses, or what comes is no answer.
        """
        body = {"model": self._model, "messages": [{"role": "user", "content": prompt}], "temperature": 0.0}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        for number in range(1, _TRIES + 1):
            try:
                with urllib.request.urlopen(request, timeout=_SECONDS) as reply:
                    said = json.load(reply)["choices"][0]["message"]["content"]
                if not isinstance(said, str):
                    raise TypeError("no text")
                return said
            except (OSError, http.client.HTTPException) as error:
                refused = isinstance(error, urllib.error.HTTPError) and error.code not in (408, 429, *range(500, 600))
                if refused or number == _TRIES:
                    raise InputError(f"the judge at {self._url} does not answer ({error}); check --judge.") from None
                time.sleep(_PAUSE * 2**number)
            except (ValueError, LookupError, TypeError):
                raise InputError(f"the judge at {self._url} sent no chat completion; check --judge.") from None
        raise AssertionError("every try ends above")


def judged_option(judge: Judge, question: str, options: Mapping[str, str], answer: str) -> str | None:
    """The option that a judge sees in an answer, None where it names none."""
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    return infer_option(judge(_OPTION.format(question=question, options=listed, answer=answer)), options)


def judged_yes_no(judge: Judge, question: str, answer: str) -> str:
    """What a judge takes an answer for: Yes, No or Unknown."""
    return yes_or_no(judge(_YES_NO.format(question=question, answer=answer)))


def judged_final(judge: Judge, question: str, answer: str) -> str:
    """The final answer that a judge reads out of a response."""
    return judge(_EXTRACT.format(question=question, answer=answer)).strip()


def judged_letters(judge: Judge, question: str, answer: str) -> str:
    """The letters of the options that a judge sees chosen; "" where it names none."""
    said = judge(_LETTERS.format(question=question, answer=answer)).strip()
    return said if said.isupper() and said.isalpha() else ""


def judged_grade(judge: Judge, question: str, true: str, answer: str) -> float:
    """The judge's grade; 0 where it gives none from 0 to 1."""
    try:
        grade = float(judge(_GRADE.format(question=question, true=true, answer=answer)))
    except ValueError:
        return 0.0
    return grade if 0 <= grade <= 1 else 0.0


def judged_same(judge: Judge, question: str, true: str, answer: str) -> bool:
    """Whether a judge finds an answer to say the same as the true one."""
    return judge(_SAME.format(question=question, true=true, answer=answer)).strip() == "1"


def judged_likeness(judge: Judge, question: str, true: str, answer: str) -> int | None:
    """How much an answer means the same as the true one, 0 to 3, None where a judge says no number of one digit."""
    said = judge(_LIKENESS.format(question=question, true=true, answer=answer)).strip()
    return int(said) if re.fullmatch(r"[+-]?[0-9]", said) else None
