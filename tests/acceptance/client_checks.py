"""What the scripts that check a server through other people's clients have in common. Nothing of this project is
imported: they run where those clients are installed, as `python SCRIPT URL KEY PICTURE.png`.

The last line of their stdout is JSON: checks, and faults as [name, what].
"""

import base64
import json
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import openai

URL, KEY, PICTURE = sys.argv[1].rstrip("/"), sys.argv[2], sys.argv[3]
CLIENT = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=120)
MODEL = CLIENT.models.list().data[0].id
QUESTION = [{"role": "user", "content": "what color is the circle?"}]
with open(PICTURE, "rb") as file:
    PNG = file.read()
SHOWN = "data:image/png;base64," + base64.b64encode(PNG).decode()
CHECKS: list[Callable[[], None]] = []


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS.append(function)
    return function


def asking(text: str, *pictures: str) -> list[dict]:
    shown = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def create(messages=QUESTION, **given):
    given = {"model": MODEL, "temperature": 0, "max_completion_tokens": 24} | given
    return CLIENT.chat.completions.create(messages=messages, **given)


def content(**given) -> str:
    return create(**given).choices[0].message.content


def equal(found, wanted) -> None:
    assert found == wanted, f"{found!r} is not {wanted!r}"


def metric(name: str) -> float:
    lines = urllib.request.urlopen(f"{URL}/metrics").read().decode().splitlines()
    found = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)]
    assert found, f"/metrics has no {name}"
    return found[0]


def settles(read: Callable[[], float], wanted: float, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while (found := read()) != wanted:
        assert time.monotonic() < end, f"{found} after {seconds} s, not {wanted}"
        time.sleep(0.05)


def raw(method: str, path: str, body: bytes | None = None, key: str | None = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON of a request as it is written here; names of headers with _ for -."""
    wanted = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY if key is None else key}"}
    wanted |= {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{URL}{path}", body, wanted, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text)


def main() -> int:
    """Runs all checks."""
    faults = []
    for each in CHECKS:
        try:
            each()
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in place if frame.filename != __file__ and "acceptance" in frame.filename]
            faults.append([each.__name__, f"line {lines[-1]}: {type(error).__name__}: {str(error)[:600]}"])
            print(f"{each.__name__}: {faults[-1][1]}", file=sys.stderr, flush=True)
    print(json.dumps({"checks": len(CHECKS), "faults": faults}))
    return int(bool(faults))
