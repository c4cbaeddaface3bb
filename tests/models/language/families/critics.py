"""The recorded critics (VisualPRM): what their tests share. Each family's test says which case is its own."""

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
from flax import nnx

from checkpoint_convert import load_released
from checkpoint_convert.released import load_bare
from checkpoint_convert.source import open_directory
from internvl_jax.data import Processor
from internvl_jax.data.text.templates import IMAGE, Message
from internvl_jax.evaluation.parity import compare, image_token_id, read_case
from internvl_jax.inference.engine.engine import Engine
from internvl_jax.inference.engine.requests import Request, Vocabulary
from internvl_jax.inference.engine.sampling_params import SamplingParams
from internvl_jax.models import InternVL
from internvl_jax.sharding import bind, flatten

LENGTH = 640  # tokens of a row; no recorded response but the long one has more


@dataclasses.dataclass(frozen=True)
class Critic:
    """A recorded case: its files, `prm.json`, and `outputs.npz`, of which the copy here has the scores' logits."""

    directory: pathlib.Path
    prm: dict
    outputs: dict[str, np.ndarray]
    model: InternVL
    processor: Processor

    @classmethod
    def read(cls, directory: pathlib.Path) -> "Critic":
        with np.load(directory / "outputs.npz") as outputs:
            recorded = dict(outputs)
        prm = json.loads((directory / "prm.json").read_text(encoding="utf-8"))
        return cls(directory, prm, recorded, *load_released(directory, "float32"))

    def responses(self):
        """(name, case, response) of every recorded response that the context of the training holds."""
        for case in self.prm["cases"]:
            for number, response in enumerate(case["responses"]):
                yield f"{case['name']}_{number}", case, response

    def logits(self, rows: list[list[int]], pictures: list[str | None], length: int) -> np.ndarray:
        """[B, length, V] of rows that are filled up with padding; `pictures` are names of recorded tiles."""
        blocks = [self.outputs[name or "pixel_values_a"].transpose(0, 2, 3, 1) for name in pictures]
        mask_G = np.concatenate([np.full(len(block), bool(name)) for block, name in zip(blocks, pictures, strict=True)])
        tokens_BT, segments_BT = np.zeros((2, len(rows), length), np.int32)
        for b, row in enumerate(rows):
            tokens_BT[b, : len(row)], segments_BT[b, : len(row)] = row, 1
        positions_BT = np.broadcast_to(np.arange(length, dtype=np.int32), tokens_BT.shape)
        graphdef, _ = nnx.split(self.model, nnx.Param)

        @jax.jit
        def run(params, *arguments):
            model = bind(graphdef, params)
            return model.logits(model(*arguments).hidden_BTD)

        arguments = tokens_BT, np.concatenate(blocks), mask_G, segments_BT, positions_BT
        return np.asarray(run(flatten(self.model), *arguments))

    def scores(self, step_logits: np.ndarray) -> np.ndarray:
        """Softmax over the logits of "+" and "-"; the part of "+"."""
        plus, minus = (step_logits[:, self.processor.tokenizer.token_id(sign)] for sign in "+-")
        return 1 / (1 + np.exp(minus - plus))


def check_tokens(critic: Critic) -> None:
    """Ids of single texts, of prompts as one string, and of prompts that the processor's template writes itself."""
    tokenizer, template = critic.processor.tokenizer, critic.processor.template
    assert {token: tokenizer.token_id(token) for token in critic.prm["special_ids"]} == critic.prm["special_ids"]
    assert bool(tokenizer.begin) == critic.prm["adds_bos"]
    assert tokenizer.image_context == critic.prm["special_ids"]["<IMG_CONTEXT>"]
    for case in critic.prm["tokens"]:
        ids = tokenizer.encode_special(case["text"])
        assert ids == case["no_special"], case["text"]
        assert [*tokenizer.begin, *ids] == case["input_ids"]
        assert tokenizer.decode(ids, skip_special=False) == case["text"]
    assert template.default_system == critic.prm["system_message"] != critic.prm["default_system"]
    # The turn of an empty step is left open.
    turn = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>\n|(?=<\|im_start\|>))", re.DOTALL)
    picture = re.compile(r"<img>(?:<IMG_CONTEXT>)+</img>")
    for name, case, response in critic.responses():
        assert [*tokenizer.begin, *tokenizer.encode_special(response["prompt"])] == response["input_ids"], name
        messages = []
        for role, text in turn.findall(response["prompt"])[1:]:  # the template knows the system turn
            parts = [part for piece in picture.split(text) for part in (IMAGE, piece)][1:]
            messages.append(Message(role, tuple(parts)))
        counts = [tiles * critic.prm["tokens_per_tile"] for tiles in case["tiles_per_image"]]
        assert template.encode_prompt(messages, counts, tokenizer).tolist() == response["input_ids"], name


def check_outputs(critic: Critic) -> None:
    """Features, hidden states and logits of one response, as `launch.compare` has them."""
    inputs, outputs, meta = read_case(critic.directory / "compare")
    report = compare(load_bare(critic.directory, "float32", image_token_id(meta)), inputs, outputs)
    assert report.keys() == outputs.keys() >= {"logits", "vit_embeds", "llm_hidden_3"}
    assert all(error < 1e-4 for error in report.values()), report


def check_generation(critic: Critic) -> None:
    """Token by token with a cache as in one pass over everything."""
    prompt = next(critic.responses())[2]["input_ids"][-40:]
    engine = Engine(critic.model, Vocabulary(critic.model.config.text.vocab, (), ()))
    tiles = np.zeros((0, 56, 56, 3), np.uint8)
    ((answer,),) = engine.run([Request(np.asarray(prompt), tiles, SamplingParams(max_new_tokens=5))])
    (logits_TV,) = critic.logits([[*prompt, *answer]], [None], 64)
    assert answer == np.argmax(logits_TV[len(prompt) - 1 : len(prompt) + 4], axis=-1).tolist()


def check_scores(critic: Critic) -> None:
    """Logits at the steps' ends and the scores of the steps, all responses in one pass."""
    found = list(critic.responses())
    pictures = [case["pixel_values"] if case["tiles_per_image"] else None for _, case, _ in found]
    logits_BTV = critic.logits([response["input_ids"] for _, _, response in found], pictures, LENGTH)
    for (name, _, response), logits_TV in zip(found, logits_BTV, strict=True):
        step_logits = logits_TV[response["score_positions"]]
        assert np.max(np.abs(step_logits - critic.outputs[f"{name}_logits"])) < 1e-4, name
        assert np.max(np.abs(critic.scores(step_logits) - response["step_scores"])) < 2e-5, name


def check_long(critic: Critic) -> None:
    """Beyond the context of the training, beside padding and beside a short row, which is rotated as if alone."""
    long, (name, case, response) = critic.prm["long"], next(critic.responses())
    assert long["length"] == len(long["input_ids"]) > 2 * long["max_position_embeddings"]
    rows, pictures = [long["input_ids"], response["input_ids"]], ["pixel_values_a", case["pixel_values"]]
    logits_BTV = critic.logits(rows, pictures, 1792)
    step_logits = logits_BTV[0, long["score_positions"]]
    assert np.max(np.abs(step_logits - critic.outputs["long_logits"])) < 2e-4
    assert np.max(np.abs(critic.scores(step_logits) - long["step_scores"])) < 2e-5
    step_logits = logits_BTV[1, response["score_positions"]]
    assert np.max(np.abs(step_logits - critic.outputs[f"{name}_logits"])) < 1e-4


def bits(directory: pathlib.Path) -> dict[str, tuple]:
    """name -> (shape, dtype, bytes) of every tensor."""
    return {
        name: (tensor.shape, tensor.dtype.name, tensor.array().tobytes())
        for name, tensor in open_directory(directory).items()
    }


def differences(before: dict, after: dict, where: str = "") -> dict[str, tuple]:
    """Dotted keys of two config.json -> both values, where they differ; None is no value."""
    found = {}
    for key in before.keys() | after.keys():
        pair = before.get(key), after.get(key)
        if all(isinstance(value, dict) for value in pair):
            found |= differences(*pair, f"{where}{key}.")
        elif pair[0] != pair[1]:
            found[where + key] = pair
    return found


# What an export writes where the recorded config.json has nothing, or leaves out as it says nothing of the model.
EXPORTED = {
    *(f"{part}.{key}" for part in ("llm_config", "vision_config") for key in ("_name_or_path", "torch_dtype")),
    *(f"{part}.transformers_version" for part in ("llm_config", "vision_config")),
    "vision_config.auto_map",
}


def check_config(critic: Critic, exported: pathlib.Path, also: set[str] = frozenset()) -> None:
    """An exported config.json is the recorded one but for what `EXPORTED` and `also` name."""
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (critic.directory, exported))
    assert differences(before, after).keys() == EXPORTED | also
