"""What a judge is asked where no rule can tell, and the endpoint that may be one.

A judge is a function from a prompt, and a temperature, to an answer. What is asked is ours, to the same end as in the
official code: scores with a judge are near published ones, not equal to them.
"""

import functools
import http.client
import json
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from internvl_jax.errors import InputError
from internvl_jax.evaluation.suites.options import infer_option
from internvl_jax.evaluation.suites.suite import Judge
from internvl_jax.evaluation.suites.text_matching import UNKNOWN, yes_or_no

Found = TypeVar("Found")

_SENT, _SECONDS, _PAUSE = 5, 120, 1.0
_TRIES, _OPTION_TRIES = 5, 3  # to understand a judge
_WARMER = 0.5  # temperature, with every try
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
      model: the name that it knows the judge by; "" for the only one that it has.
      key: for its Authorization header; "" sends none.
    """

    def __init__(self, url: str, model: str = "", key: str = ""):
        if not url.startswith(("http://", "https://")):
            raise InputError(f"the judge's address is {url!r}; give one that begins with http:// or https://.")
        self._url, self._model, self._key = url.rstrip("/"), model, key

    @functools.cached_property
    def model(self) -> str:
        """The name of the judge there; InputError where it isn't given and several have one, or as in a call."""
        if self._model:
            return self._model
        listed = self._sent("/models", None, "list of models")
        try:
            names = [str(each["id"]) for each in listed["data"]]
        except (LookupError, TypeError):
            raise InputError(f"the judge at {self._url} sent no list of models; give --judge_model.") from None
        if len(names) != 1:
            raise InputError(
                f"the judge at {self._url} has {', '.join(names[:8]) or 'no model'}; name one by --judge_model."
            )
        return names[0]

    def __call__(self, prompt: str, temperature: float = 0.0) -> str:
        """The judge's answer.

        Raises:
          InputError: nobody answers there for half a minute, it refuses, or what comes is no answer.
        """
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": temperature}
        sent = self._sent("/chat/completions", json.dumps(body).encode(), "chat completion")
        try:
            said = sent["choices"][0]["message"]["content"]
        except (LookupError, TypeError):
            said = None
        if not isinstance(said, str):
            raise InputError(f"the judge at {self._url} sent no chat completion; check --judge.")
        return said

    def _sent(self, path: str, body: bytes | None, what: str) -> Any:
        """What it sends, JSON, or what it is asked again for as long as it can't."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(self._url + path, body, headers)
        for number in range(1, _SENT + 1):
            try:
                with urllib.request.urlopen(request, timeout=_SECONDS) as reply:
                    return json.load(reply)
            except (OSError, http.client.HTTPException) as error:
                refused = isinstance(error, urllib.error.HTTPError) and error.code not in (408, 429, *range(500, 600))
                if refused or number == _SENT:
                    raise InputError(f"the judge at {self._url} does not answer ({error}); check --judge.") from None
                time.sleep(_PAUSE * 2**number)
            except ValueError:
                raise InputError(f"the judge at {self._url} sent no {what}; check --judge.") from None
        raise AssertionError("every try ends above")


def judged_option(judge: Judge, question: str, options: Mapping[str, str], answer: str) -> str | None:
    """The option that a judge sees in an answer; one by lot, the same each time, where it names none in three tries."""
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    prompt = _OPTION.format(question=question, options=listed, answer=answer)
    found = _read(judge, prompt, lambda said: infer_option(said, options), _OPTION_TRIES)
    return random.Random(prompt).choice(list(options)) if found is None and options else found


def judged_yes_no(judge: Judge, question: str, answer: str) -> str:
    """What a judge takes an answer for: Yes, No or Unknown."""
    known = lambda said: None if (found := yes_or_no(said)) == UNKNOWN else found
    return _read(judge, _YES_NO.format(question=question, answer=answer), known) or UNKNOWN


def judged_final(judge: Judge, question: str, answer: str) -> str:
    """The final answer that a judge reads out of a response; "" where it says nothing."""
    prompt = _EXTRACT.format(question=question, answer=answer)
    return _read(judge, prompt, lambda said: said.strip() or None) or ""


def judged_letters(judge: Judge, question: str, answer: str) -> str:
    """The letters of the options that a judge sees chosen; "" where it names none."""
    letters = lambda said: said.strip() if said.strip().isupper() and said.strip().isalpha() else None
    return _read(judge, _LETTERS.format(question=question, answer=answer), letters) or ""


def judged_grade(judge: Judge, question: str, true: str, answer: str) -> float:
    """The judge's grade; 0 where it gives none from 0 to 1."""
    return _read(judge, _GRADE.format(question=question, true=true, answer=answer), _grade) or 0.0


def judged_same(judge: Judge, question: str, true: str, answer: str) -> bool:
    """Whether a judge finds an answer to say the same as the true one."""
    digit = lambda said: said.strip() if said.strip() in ("0", "1") else None
    return _read(judge, _SAME.format(question=question, true=true, answer=answer), digit) == "1"


def judged_likeness(judge: Judge, question: str, true: str, answer: str) -> int | None:
    """How much an answer means the same as the true one, 0 to 3, None where a judge says no number of one digit."""
    said = judge(_LIKENESS.format(question=question, true=true, answer=answer)).strip()  # once, as released
    return int(said) if re.fullmatch(r"[+-]?[0-9]", said) else None


def _read(judge: Judge, prompt: str, read: Callable[[str], Found | None], tries: int = _TRIES) -> Found | None:
    """What is read in the judge's answer; it is asked again, ever warmer, until something is."""
    for number in range(tries):
        found = read(judge(prompt, number * _WARMER) if number else judge(prompt))
        if found is not None:
            return found
    return None


def _grade(said: str) -> float | None:
    try:
        grade = float(said)
    except ValueError:
        return None
    return grade if 0 <= grade <= 1 else None
