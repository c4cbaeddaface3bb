"""What langchain-openai's users do; see `client_checks`."""

import base64
import sys
from typing import Literal

import pydantic
from client_checks import KEY, MODEL, PNG, SHOWN, URL, asking, check, content, equal, main
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

CHAT = ChatOpenAI(
    base_url=f"{URL}/v1", api_key=KEY, model=MODEL, temperature=0, max_completion_tokens=24, max_retries=0
)
ASKED = HumanMessage(
    [
        {"type": "image", "base64": base64.b64encode(PNG).decode(), "mime_type": "image/png"},
        {"type": "text", "text": "what color is the shape?"},
    ]
)


@check
def a_picture_is_answered() -> None:
    answer = CHAT.invoke([ASKED])
    equal(answer.content, content(messages=asking("what color is the shape?", SHOWN)))
    used = answer.usage_metadata
    equal(used["total_tokens"], used["input_tokens"] + used["output_tokens"])
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    equal(answer.response_metadata["model_name"], MODEL)


@check
def a_stream_says_the_same() -> None:
    pieces = list(CHAT.stream([ASKED], stream_usage=True))
    equal("".join(piece.content for piece in pieces), CHAT.invoke([ASKED]).content)
    counts = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
    equal(len(counts), 1)


@check
def a_conversation_goes_on() -> None:
    first = CHAT.invoke([SystemMessage("Be brief."), ASKED])
    assert isinstance(first, AIMessage)
    assert isinstance(CHAT.invoke([SystemMessage("Be brief."), ASKED, first, HumanMessage("sure?")]).content, str)


@check
def a_batch_says_what_each_says() -> None:
    questions = [[HumanMessage(f"what is {number}?")] for number in range(6)]
    equal([each.content for each in CHAT.batch(questions)], [CHAT.invoke(each).content for each in questions])


class Shape(pydantic.BaseModel):
    """A shape in a picture."""

    kind: Literal["circle", "rectangle", "triangle"]
    filled: bool


@check
def answers_of_a_schema() -> None:
    chat = ChatOpenAI(base_url=f"{URL}/v1", api_key=KEY, model=MODEL, temperature=0, max_completion_tokens=120)
    assert isinstance(chat.with_structured_output(Shape).invoke([ASKED]), Shape)
    found = chat.with_structured_output(Shape.model_json_schema(), method="json_schema").invoke([ASKED])
    equal(set(found), {"kind", "filled"})


@check
def log_probabilities_are_told() -> None:
    answer = CHAT.bind(logprobs=True, top_logprobs=2).invoke([ASKED])
    assert len(answer.response_metadata["logprobs"]["content"]) >= 1


if __name__ == "__main__":
    sys.exit(main())
