"""A conversation in the terminal."""

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from internvl_jax.data import Processor, images, split_thinking, video_info
from internvl_jax.errors import InputError
from internvl_jax.inference.chat import stream_chat
from internvl_jax.models import InternVL

_COMMANDS = """commands:
  /image PATH   adds a picture to the next message (quote a path with blanks)
  /video PATH   adds a video
  /clear        starts anew
  /help         shows this
  /quit         ends, as Ctrl-D does; Ctrl-C ends the answer that is being written"""


def message(text: str, shown: Sequence[str | dict[str, Any]]) -> dict[str, Any]:
    """A user's message with pictures and videos before its text, OpenAI-style.

    Args:
      shown: paths of pictures, and parts of messages as `Processor` reads them.
    """
    parts = [{"type": "image", "image": each} if isinstance(each, str) else each for each in shown]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


@contextlib.contextmanager
def saying(what: str) -> Iterator[None]:
    """Says on stderr what is being done: on a terminal as long as it lasts, elsewhere as a line."""
    shown = sys.stderr.isatty()
    print(f"{what} ...", end="" if shown else "\n", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def converse(
    model: InternVL, processor: Processor, sampling: dict[str, Any], shown: Sequence[str | dict[str, Any]]
) -> None:
    """Reads messages from stdin and streams the answers to stdout until the input ends.

    `/help` tells the commands. A bad message is reported on stderr and forgotten; an interrupt ends the answer that is
    being written, and what was said stays in the conversation.

    Args:
      sampling: keyword arguments of `stream_chat`.
      shown: what the first message shows, see `message`.
    """
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() then edits lines and remembers them
        print("type a message and Enter; /help lists commands", file=sys.stderr)
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
            messages, shown = [], []
        elif command in ("/image", "/video"):
            shown = [*shown, *_shown(command, argument.strip(), processor)]
        elif command == "/help":
            print(_COMMANDS, file=sys.stderr)
        elif line.startswith("/"):
            print(f"there is no command {command}; /help lists them", file=sys.stderr)
        elif line:
            asked = [*messages, message(line, shown)]
            try:
                answer = _answer(stream_chat(model, processor, asked, **sampling), first=not messages)
                messages = [*asked, {"role": "assistant", "content": split_thinking(answer)[1]}]
            except InputError as error:
                print(f"error: {error}", file=sys.stderr)
            shown = []
            print(flush=True)


def _answer(pieces: Iterator[str], first: bool) -> str:
    """Shows an answer as it comes; returns what there is of it when it ends or is interrupted."""
    said = []
    try:
        with saying("compiling") if first else contextlib.nullcontext():
            said = [next(pieces, "")]
        print(said[0], end="", flush=True)
        for piece in pieces:
            said.append(piece)
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pass
    return "".join(said)


def _shown(command: str, argument: str, processor: Processor) -> list[str | dict[str, Any]]:
    """What stands after /image or /video, if pictures or videos are there."""
    try:
        paths = shlex.split(argument) if argument[:1] in ("'", '"') else [argument]
        for path in paths:
            if not path:
                raise InputError(f"{command} needs the path of a {'picture' if command == '/image' else 'video'}")
            if command == "/image":
                images.image_size(path, processor.image_config)
            else:
                video_info(path)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return []
    except ValueError:  # of shlex
        print(f"error: a quote does not end in {argument}", file=sys.stderr)
        return []
    return [*paths] if command == "/image" else [{"type": "video", "video": path} for path in paths]
