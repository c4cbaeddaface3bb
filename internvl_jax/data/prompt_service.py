"""A process that makes prompts for a server: what hangs or ends on a picture does so here, and not in the server.

It is told in pickles by its parent, which it trusts, and answers in JSON and plain bytes, since the parent must not
trust a process that has decoded pictures of strangers.
"""

import dataclasses
import multiprocessing.connection
import signal
import sys
import traceback
import types

import msgspec
from PIL import Image

from internvl_jax.data.media import tiling
from internvl_jax.data.processor import ChatInputs, Processor
from internvl_jax.data.text.thinking import ThinkingSwitch, begun
from internvl_jax.errors import InputError
from internvl_jax.validation import check_fields


@dataclasses.dataclass(frozen=True)
class PromptSettings:
    """How a request wants its prompt made.

    Attributes:
      thinking: 'on' asks for it by the released system text, where a conversation brings none, and begins the answer
        with it; 'off' begins the answer behind it; 'auto' does neither.
      effort: 'low', 'medium' or 'high', for templates that know them; then its system text is taken and not that of
        thinking.
      max_dynamic_patch: tiles of each picture, in place of the model's own limit; a picture's own wins.
    """

    thinking: ThinkingSwitch = "auto"
    effort: str | None = None
    max_dynamic_patch: tiling.Tiles | None = None

    def __post_init__(self) -> None:
        check_fields(self, "prompt settings")

    @property
    def begun(self) -> str:
        """How the answer begins, in this project's text; `Processor.begin` gives its tokens."""
        return begun(self.thinking)

    @classmethod
    def wanted(
        cls, efforts: bool, thinking: ThinkingSwitch, effort: str | None = None, max_dynamic_patch: int | None = None
    ) -> "PromptSettings":
        """Settings as a family has them. Where a model has no efforts, any is thinking; where it has, thinking without
        one is 'medium', and the least leaves it to the model.

        Args:
          efforts: whether the model's template has them.
        """
        if not efforts:
            return cls(thinking, None, max_dynamic_patch)
        effort = effort or ("medium" if thinking == "on" else None)
        return cls("auto" if effort == "low" else thinking, effort, max_dynamic_patch)

    def adapt(self, processor: Processor) -> Processor:
        """The processor with the system text that these settings ask for; InputError for an unknown effort."""
        if self.effort is not None:
            return processor.with_reasoning(self.effort)
        return processor.with_thinking() if self.thinking == "on" else processor

    def prompt(self, processor: Processor, messages: list[dict], max_tiles: int | None = None) -> ChatInputs:
        """Model inputs for messages, which may not name files of this machine.

        Args:
          max_tiles: of all pictures together, known before any is decoded; None for no limit.
        """
        if max_tiles is not None:
            tiles = processor.num_tiles(messages, self.max_dynamic_patch, allow_paths=False)
            if tiles > max_tiles:
                raise InputError(
                    f"the pictures of the request make {tiles} tiles, more than the limit of {max_tiles}; send fewer, "
                    "or lower max_dynamic_patch or num_frames."
                )
        return self.adapt(processor)(messages, self.max_dynamic_patch, allow_paths=False, begun=self.begun)


@dataclasses.dataclass(frozen=True)
class PromptOrder:
    """What the process is told to do.

    Attributes:
      messages: see `Processor.__call__`.
      settings: of the request.
      max_tiles: of all pictures together.
      seconds: the process ends if it is at it for so long, whatever became of its parent.
    """

    messages: list[dict]
    settings: PromptSettings
    max_tiles: int
    seconds: float


class PromptReply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What it answers, and once when it is ready; the bytes of `ChatInputs` follow, tokens and then tiles, unless it
    refuses.

    Attributes:
      refused: why there is no prompt, in a sentence; None if there is one.
      tokens, tiles: how many of them.
      image_token_counts, image_sizes: of every picture.
    """

    refused: str | None
    tokens: int = 0
    tiles: int = 0
    image_token_counts: tuple[int, ...] = ()
    image_sizes: tuple[tuple[int, int, int, int], ...] = ()


def serve_prompts() -> None:
    """The process; its first argument is the number of its socket. Ends with its parent."""
    import resource  # which not every system has that data are read on

    sys.excepthook = _report
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's business
    connection = multiprocessing.connection.Connection(int(sys.argv[1]))
    processor, memory = connection.recv()
    # No core: it would hold pictures. What limits pixels is the processor, by headers, with a clearer sentence.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    Image.MAX_IMAGE_PIXELS = None
    connection.send_bytes(msgspec.json.encode(PromptReply(None)))
    while True:
        try:
            order = connection.recv()
        except (EOFError, OSError):
            return
        # Python ends a process of its own accord between two operations alone, the system even within a decoder.
        signal.setitimer(signal.ITIMER_REAL, order.seconds)
        _answer(connection, processor, order, memory)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(
    connection: multiprocessing.connection.Connection, processor: Processor, order: PromptOrder, memory: int
) -> None:
    inputs, refused = None, ""
    try:
        inputs = order.settings.prompt(processor, order.messages, order.max_tiles)
    except InputError as error:
        refused = str(error)
    except MemoryError:
        refused = f"the pictures take more than the {memory} bytes of memory allowed; scale them down."
    if inputs is None:
        connection.send_bytes(msgspec.json.encode(PromptReply(refused)))
        return
    tokens_T, tiles_GHWC = inputs.tokens_T, inputs.tiles_GHWC
    reply = PromptReply(None, len(tokens_T), len(tiles_GHWC), inputs.image_token_counts, inputs.image_sizes)
    connection.send_bytes(msgspec.json.encode(reply))
    connection.send_bytes(tokens_T.tobytes())
    connection.send_bytes(tiles_GHWC.tobytes())


def _report(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """Where something went wrong, without the error's words, which may be a request's."""
    del error
    print("".join(traceback.format_tb(trace)), kind.__name__, sep="", file=sys.stderr, flush=True)
