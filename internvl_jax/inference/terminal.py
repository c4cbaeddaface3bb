"""A conversation in the terminal."""

import sys
from typing import Any

from internvl_jax.data import Processor, split_thinking
from internvl_jax.errors import InputError
from internvl_jax.inference.chat import stream_chat
from internvl_jax.models import InternVL


def message(text: str, images: list[str]) -> dict[str, Any]:
    """A user's message with pictures before its text, OpenAI-style."""
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def converse(model: InternVL, processor: Processor, sampling: dict[str, Any], images: list[str]) -> None:
    """Reads messages from stdin and streams the answers to stdout until the input ends.

    `/image PATH` adds a picture to the next message, `/clear` starts anew, `/quit` ends. A bad message is reported on
    stderr and forgotten; an interrupt stops the answer that is being written.

    Args:
      sampling: keyword arguments of `stream_chat`.
      images: paths of the first message's pictures.
    """
    messages: list[dict[str, Any]] = []
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        command, _, argument = line.partition(" ")
        if command == "/quit":
            return
        if command == "/clear":
            messages, images = [], []
        elif command == "/image" and argument.strip():
            images = [*images, argument.strip()]
        elif line.startswith("/"):
            print("commands: /image PATH, /clear, /quit", file=sys.stderr)
        elif line:
            asked, pieces = [*messages, message(line, images)], []
            try:
                for piece in stream_chat(model, processor, asked, **sampling):
                    pieces.append(piece)
                    print(piece, end="", flush=True)
                answer = split_thinking("".join(pieces))[1]
                messages, images = [*asked, {"role": "assistant", "content": answer}], []
            except KeyboardInterrupt:  # stops this answer only
                pass
            except InputError as error:
                print(f"error: {error}", file=sys.stderr)
                images = []
            print(flush=True)
