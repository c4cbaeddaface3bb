"""What is fuzzed: for every door of the project a way to make an input, and the call that takes or refuses it."""

import contextlib
import copy
import dataclasses
import io
import json
import math
import pathlib
import random
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from checkpoint_convert.hf_config import read_config
from checkpoint_convert.reader import ReleasedReader
from checkpoint_convert.released import released_table
from checkpoint_convert.source import open_directory
from checkpoint_convert.structures import specs_of
from configs.experiments import consistency, gspo, mpo, router, sft
from internvl_jax import validation
from internvl_jax.data import Processor, Tokenizer, check, get_template, packing, tiling, train_bpe
from internvl_jax.data.reading import prompts, samples, sources
from internvl_jax.data.reading.preferences import parse_pair
from internvl_jax.errors import InputError
from internvl_jax.evaluation import read_questions
from internvl_jax.evaluation.parity import read_case
from internvl_jax.grading import Graders, rewards
from internvl_jax.inference import SamplingParams
from internvl_jax.inference.load import read_config as read_own
from internvl_jax.making.resumable import ResumableFolder
from internvl_jax.models import InternVLConfig
from internvl_jax.sharding import params_io
from internvl_jax.training.run import hooks, setup
from internvl_jax.training.stages.gspo import rounds
from tests.fuzzing import mutate
from tests.fuzzing.frames import frames, open_ports

Rng = random.Random
GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
TEXT = "What is in this picture? red green blue 12 34"
QUESTION = "<image>\nWhat is this?"


class Accepted(AssertionError):
    """A value was taken that no run can have."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Attributes:
    share: of all inputs, relative to the other targets.
    prepare: makes what all inputs need in a folder, once.
    attempt: makes an input from random numbers in the folder, and gives it to the project.
    """

    share: int
    prepare: Callable[[pathlib.Path], Any]
    attempt: Callable[[Rng, pathlib.Path, Any], None]


def processor(folder: pathlib.Path) -> Processor:
    tokenizer = train_bpe([TEXT] * 3, 320)
    tokenizer.save(folder)
    image = tiling.ImageConfig(56, 4, 1, 12, True, False, tiling.DEFAULT_MAX_PIXELS)
    return Processor(image, Tokenizer.load(folder), get_template("internvl2_5"))


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, format=kind)
    return file.getvalue()


def bounded(config: Any, where: str = "") -> None:
    """Raises where a number of an accepted config is none that a run can have."""
    for name, number in vars(config).items():
        if dataclasses.is_dataclass(number):
            bounded(number, f"{where}.{name}")
        elif isinstance(number, tuple):
            for part in number:
                if dataclasses.is_dataclass(part):
                    bounded(part, f"{where}.{name}")
        elif isinstance(number, float | int) and not (math.isfinite(number) and -1 <= number <= 2**41):
            raise Accepted(f"{where}.{name} = {number}")


# Data.

RECORD = {
    "id": 1,
    "image": "a.png",
    "width": 40,
    "height": 30,
    "conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": "red"}],
}
PROMPT = {"image": ["a.png"], "question": QUESTION, "answer": "red", "system_prompt": "s", "chosen": "red"}
PAIR = {"image": "a.png", "question": QUESTION, "chosen": "red", "rejected": "blue"}
META = {
    "root": "",
    "annotation": "a.jsonl",
    "data_augment": False,
    "max_dynamic_patch": 6,
    "repeat_time": 1,
    "length": 2,
}


def data_folder(folder: pathlib.Path) -> Processor:
    (folder / "a.png").write_bytes(picture())
    (folder / "a.jsonl").write_text(json.dumps(RECORD) + "\n" + json.dumps(RECORD) + "\n")
    return processor(folder)


def meta(rng: Rng, folder: pathlib.Path, made: Processor) -> None:
    entry = {**META, "root": str(folder), "annotation": str(folder / "a.jsonl")}
    (folder / "meta.json").write_bytes(mutate.document(rng, {"toy": entry}))
    datasets = sources.read_meta(str(folder / "meta.json"))
    for dataset in datasets:
        bounded(dataset)
    check.check(str(folder / "meta.json"), made, packing.PackingConfig(4096, 96, 20), decode=False, render=1)


def lines(rng: Rng, folder: pathlib.Path, made: Processor) -> None:
    content = b"\n".join(mutate.document(rng, RECORD) for _ in range(3))
    path = folder / "lines.jsonl"
    path.write_bytes(mutate.damaged(rng, content) if rng.random() < 0.2 else content)
    dataset = sources.Dataset("toy", str(folder), str(path), False, None, 1, None)
    offsets, _ = sources.scan_lines(str(path))
    reader = samples.SampleReader(dataset, offsets, made)
    for number in range(len(reader)):
        refused(lambda number=number: reader.measure(number))
        refused(lambda number=number: reader.load(number, np.random.default_rng(0)))


def pairs(rng: Rng, folder: pathlib.Path, made: Processor) -> None:
    dataset = sources.Dataset("toy", str(folder), "pairs.jsonl", False, None, 1, None)
    parse_pair(mutate.document(rng, PAIR), "pairs.jsonl:1", dataset)


def questions_to_answer(rng: Rng, folder: pathlib.Path, made: Processor) -> None:
    path = folder / "prompts.jsonl"
    path.write_bytes(mutate.document(rng, PROMPT) + b"\n")
    opened = prompts.open_prompts(path)
    prompts.encode_prompt(opened[0], made)
    prompts.screen_prompts(opened, made, 500)


def accuracies(rng: Rng, folder: pathlib.Path, made: Processor) -> None:
    path = folder / "accuracies.jsonl"
    path.write_bytes(mutate.document(rng, {"key": "a" * 32, "accuracy": 0.5, "responses": 4}))
    for number in prompts.read_accuracies(path).values():
        if not 0 <= number <= 1:
            raise Accepted(f"an accuracy of {number}")


def questions(rng: Rng, folder: pathlib.Path, made: Processor) -> None:
    path = folder / "questions.jsonl"
    path.write_bytes(mutate.document(rng, {"image": "a.png", "question": "What?", "answer": "red"}))
    for question in read_questions(path):
        made(question.messages)


def parquet(rng: Rng, folder: pathlib.Path, made: Processor) -> None:
    row = {
        "prompt": [{"role": "user", "content": QUESTION}],
        "images": [{"path": "a.png"}],
        "reward_model": {"ground_truth": "red"},
    }
    path = folder / "rows.parquet"
    try:
        table = pyarrow.Table.from_pylist([mutate.value(rng, row, 2)])
        pyarrow.parquet.write_table(table, path)
    except (pyarrow.ArrowException, TypeError, UnicodeEncodeError, OverflowError, AttributeError):
        return  # a table cannot hold it
    if rng.random() < 0.3:
        path.write_bytes(mutate.damaged(rng, path.read_bytes()))
    opened = prompts.open_prompts(path)
    for number in range(min(3, len(opened))):
        refused(lambda number=number: prompts.encode_prompt(opened[number], made))


# Pictures and messages.


def pictures(folder: pathlib.Path) -> dict[str, bytes]:
    return {kind: picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")}


def pixels(rng: Rng, folder: pathlib.Path, kinds: dict[str, bytes]) -> None:
    from internvl_jax.data import load_image, tile_image

    kind = rng.choice(list(kinds))
    content = mutate.damaged(rng, kinds[kind])
    if kind == "PNG" and rng.random() < 0.5:  # another size in the header, with the checksum that belongs to it
        import struct
        import zlib

        side = lambda: rng.choice((0, 1, 40, 5000, 60_000_000, 89_478_485, 2**31 - 1))
        header = b"IHDR" + struct.pack(">II", side(), side()) + kinds[kind][24:29]
        content = kinds[kind][:12] + header + struct.pack(">I", zlib.crc32(header)) + kinds[kind][33:]
    config = tiling.ImageConfig(56, 4, 1, 12, True, rng.random() < 0.5, tiling.DEFAULT_MAX_PIXELS)
    tile_image(load_image(content, config), config)


def messages(rng: Rng, folder: pathlib.Path, made: Processor) -> None:
    import base64

    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    red = {"type": "image", "image": str(folder / "a.png")}
    talk = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url, "detail": "low"}}]},
        {"role": "assistant", "content": "red"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "and?"}, red],
        },
    ]
    made(mutate.value(rng, talk, 2), max_dynamic_patch=rng.choice((None, None, 1, 0, -1, 10**8, 12)))


def sampling(rng: Rng, folder: pathlib.Path, made: Any) -> None:
    fields = {"max_new_tokens": 5, "temperature": 0.5, "top_k": 4, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 3}
    fields |= {"min_p": 0.1, "min_tokens": 2, "logprobs": 3, "ignore_eos": True}
    for name in rng.sample(list(fields), 2):
        fields[name] = rng.choice(mutate.NASTY)
    if rng.random() < 0.3:
        fields[rng.choice(("stop_strings", "stop_token_ids", "logit_bias"))] = rng.choice(
            (*mutate.NASTY, "END", ("a", ""), (-1,))
        )
    params = SamplingParams(**fields)
    bounded(params)
    if isinstance(params.stop_strings, str) or params.top_p <= 0 or params.temperature < 0:
        raise Accepted(str(params))


# Models and tokenizers.


def released(folder: pathlib.Path) -> dict[str, Any]:
    names = ("chat_qwen3_github", "hf_qwen3", "flash_qwen3_github", "hf_gptoss", "visualprm_internlm2_github")
    processor(folder)
    return {name: json.loads((GOLDEN / name / "config.json").read_text()) for name in names}


def released_config(rng: Rng, folder: pathlib.Path, configs: dict[str, Any]) -> None:
    name = rng.choice(list(configs))
    (folder / "config.json").write_bytes(mutate.document(rng, configs[name]))
    refused(lambda: Processor.from_released(folder))
    config = read_config(folder)
    made = config.model(7)
    bounded(made)
    specs_of(made)
    released_table(config)


def own_model(folder: pathlib.Path) -> dict[str, Any]:
    made = processor(folder)
    config = read_config(GOLDEN / "flash_qwen3_github").model(7)
    return {"format": 1, "model": config.to_dict(), "processor": made.to_dict()}


def own_config(rng: Rng, folder: pathlib.Path, values: dict[str, Any]) -> None:
    (folder / "config.json").write_bytes(mutate.document(rng, values))
    config, made = read_own(folder)
    bounded(config)
    bounded(made.image_config)
    if config != InternVLConfig.from_dict(json.loads(json.dumps(config.to_dict()))):
        raise Accepted("a config that is another one when it is read again")


def byte_pairs(folder: pathlib.Path) -> dict[str, Any]:
    processor(folder)
    files = {name: json.loads((folder / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json")}
    files["added_tokens.json"] = {"<x>": 400}
    files["special_tokens_map.json"] = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>"}
    files["tokenizer_config.json"]["added_tokens_decoder"] = {"301": {"content": "<|im_end|>", "special": True}}
    return files


def tokenizer_files(rng: Rng, folder: pathlib.Path, files: dict[str, Any]) -> None:
    wrong = rng.choice(list(files))
    for name, values in files.items():
        (folder / name).write_bytes(mutate.document(rng, values) if name == wrong else json.dumps(values).encode())
    use(Tokenizer.load(folder))


def vocabulary(folder: pathlib.Path) -> dict[str, Any]:
    model = json.loads(_tokenizer_json(folder))["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    names = {"<|im_end|>": 600, "<|endoftext|>": 601, "<IMG_CONTEXT>": 602}
    return {"vocab.json": model["vocab"], "merges.txt": "\n".join(merges), "added_tokens.json": names}


def _tokenizer_json(folder: pathlib.Path) -> str:
    processor(folder)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").unlink()
    return text


def vocabulary_files(rng: Rng, folder: pathlib.Path, files: dict[str, Any]) -> None:
    wrong = rng.choice(list(files))
    for name, values in files.items():
        content = values.encode() if isinstance(values, str) else json.dumps(values).encode()
        if name == wrong:
            content = mutate.damaged(rng, content) if isinstance(values, str) else mutate.document(rng, values)
        (folder / name).write_bytes(content)
    use(Tokenizer.load(folder))


def pieces(folder: pathlib.Path) -> dict[str, bytes]:
    case = GOLDEN / "visualprm_internlm2_github"
    names = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    return {name: (case / name).read_bytes() for name in names if (case / name).exists()}


def pieces_files(rng: Rng, folder: pathlib.Path, files: dict[str, bytes]) -> None:
    wrong = rng.choice(list(files))
    for name, content in files.items():
        if name == wrong:
            content = (
                mutate.damaged(rng, content) if name.endswith(".model") else mutate.document(rng, json.loads(content))
            )
        (folder / name).write_bytes(content)
    use(Tokenizer.load(folder))


def use(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT + " <box> \N{SNOWMAN}")
    tokenizer.decode([*ids, *range(0, 700, 7)], skip_special=False)
    tokenizer.encode_special("<|im_end|>" + TEXT)


# Weights.


def safetensors(folder: pathlib.Path) -> bytes:
    for name in ("config.json",):
        shutil.copy(GOLDEN / "chat_qwen3_github" / name, folder)
    processor(folder)
    return next((GOLDEN / "chat_qwen3_github").glob("*.safetensors")).read_bytes()


def safetensors_file(rng: Rng, folder: pathlib.Path, content: bytes) -> None:
    size = 8 + int.from_bytes(content[:8], "little")
    fate = rng.random()
    if fate < 0.5:
        content = mutate.damaged(rng, content[:size]) + content[size:]
    elif fate < 0.8:
        header = mutate.value(rng, json.loads(content[8:size]), 2)
        text = json.dumps(header).encode("utf-8", "surrogatepass")
        content = len(text).to_bytes(8, "little") + text + content[size:]
    else:
        content = content[: rng.randrange(len(content))]
    (folder / "model.safetensors").write_bytes(content)
    open_directory(folder)
    config = read_config(folder)
    ReleasedReader(folder, released_table(config), specs_of(config.model(7)))


def checkpoint(folder: pathlib.Path) -> dict[str, bytes]:
    path = folder / "whole"
    params_io.write_params(path, {"a.b": np.arange(600, dtype=np.float32).reshape(20, 30), "c": np.ones(3, np.float32)})
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def checkpoint_files(rng: Rng, folder: pathlib.Path, files: dict[str, bytes]) -> None:
    path, wrong, fate = folder / "params", rng.choice(list(files)), rng.random()
    shutil.rmtree(path, ignore_errors=True)
    for name, content in files.items():
        if name == wrong:
            if fate < 0.3:
                continue
            content = mutate.damaged(rng, content)
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    specs = params_io.read_specs(params_io.locate(folder))
    import jax

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {name: jax.ShapeDtypeStruct(spec.shape, np.float32, sharding=here) for name, spec in specs.items()}
    params_io.read_params(path, wanted)


# A run: its config, and what it wrote.


def experiments(folder: pathlib.Path) -> list[Any]:
    made = []
    for module in (sft, mpo, gspo, consistency, router):
        config = module.get_config("tiny")
        config.run.workdir, config.data.meta, config.data.tokenizer = "w", "m", "t"
        config.run.init_from = "start"
        if config.stage is not None:
            config.stage.reference = "start"
        setup.check(config)
        made.append(config)
    return made


def run_config(rng: Rng, folder: pathlib.Path, configs: list[Any]) -> None:
    config = copy.deepcopy(rng.choice(configs))
    parts = [part for part in (config.run, config.data, config.optim, config.stage, *config.optim.groups) if part]
    for _ in range(rng.choice((1, 1, 2))):
        part = rng.choice(parts)
        name = rng.choice(list(vars(part)))
        setattr(part, name, copy.deepcopy(rng.choice((*mutate.NASTY, -1e-9, 1.0, 2.0, 100, 10**7))))
    setup.check(config)
    bounded(config)
    optim = config.optim
    if not (0 < optim.learning_rate and 0 < optim.clip_norm and 0 <= optim.beta1 < 1 and 0 <= optim.beta2 < 1):
        raise Accepted(str(optim))


def run_state(folder: pathlib.Path) -> bytes:
    group = rounds.ResponseGroup(
        0,
        [np.arange(3), np.arange(2)],
        [np.zeros(3, np.float32), np.zeros(2, np.float32)],
        ["a", "b"],
        [rewards.Score(1.0, 1.0, 1.0), rewards.Score(0.0, 0.0, 1.0)],
        [True, False],
        routes=[None, None],
    )
    prompt = prompts.Prompt("p:1", None, "q", "a", "", (), sources.Dataset("d", "", "p", False, None, 1, None))
    rounds.write_round(folder, rounds.Round(1, 1, [group], {"reward": 0.5}), [prompt], 2)
    return (folder / "000001.npz").read_bytes()


def state_files(rng: Rng, folder: pathlib.Path, content: bytes) -> None:
    def round_file() -> None:
        (folder / "000001.npz").write_bytes(mutate.damaged(rng, content))
        rounds.read_round(folder, 1)

    def metrics() -> None:
        (folder / "metrics.jsonl").write_bytes(
            b"\n".join(mutate.document(rng, {"step": step, "loss": 1.5, "mfu": None}) for step in range(1, 4))
        )
        hooks.read_metrics(folder)

    def answers() -> None:
        shutil.rmtree(folder / "out.partial", ignore_errors=True)
        with ResumableFolder(folder / "out", {"seed": 1}, "responses.jsonl") as made:
            made.append([{"text": "a"}, {"text": "b"}])
        for name in ("settings.json", "responses.jsonl"):
            path = made.path / name
            if rng.random() < 0.5:
                path.write_bytes(mutate.damaged(rng, path.read_bytes()))
        with ResumableFolder(folder / "out", {"seed": 1}, "responses.jsonl") as again:
            again.resume([1, 1])
            list(again.entries())

    rng.choice((round_file, metrics, answers))()


def recorded(folder: pathlib.Path) -> dict[str, bytes]:
    for name in ("inputs.npz", "outputs.npz"):
        np.savez(folder / name, a=np.arange(4))
    (folder / "meta.json").write_text('{"image_token_id": 3}')
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def recorded_files(rng: Rng, folder: pathlib.Path, files: dict[str, bytes]) -> None:
    wrong = rng.choice(list(files))
    for name, content in files.items():
        (folder / name).write_bytes(mutate.damaged(rng, content) if name == wrong else content)
    read_case(folder)


# Grading, and JSON by itself.

ANSWERS = (
    "Final answer: **B**",
    r"\boxed{\frac{1}{2}}",
    "3 x 10^8 m/s",
    "答案：Ｂ",
    "1/2 cm",
    "12:30",
    "[1, 2, 3]",
    "2^{10}",
)


def graders(folder: pathlib.Path) -> dict[str, Graders]:
    # As in a run: with a limit of time, in processes that may be ended.
    return {name: Graders(name, 3.0, 1).__enter__() for name in ("mmpr", "answer", "exact")}


def grading(rng: Rng, folder: pathlib.Path, made: Any) -> None:
    def text() -> str:
        words = [rng.choice(ANSWERS) for _ in range(rng.choice((1, 1, 3)))]
        noise = ("(", "{", "\\frac", "^", "9^9^9^9", "\\sqrt{" * 50, "1e99999", "\0", "\ud83d", "x" * 5000, "=" * 3000)
        for _ in range(rng.choice((0, 1, 3))):
            words.insert(rng.randrange(len(words) + 1), rng.choice(noise) * rng.choice((1, 1, 40)))
        return "".join(words)

    for name in ("mmpr", "answer", "exact"):
        [score] = made[name].grade([text()], [text()])
        if not all(0 <= number <= 1 for number in (score.reward, score.accuracy, score.format)):
            raise Accepted(f"a score of {score}")


def documents(rng: Rng, folder: pathlib.Path, made: Any) -> None:
    text = json.dumps(validation.parse_json(mutate.document(rng, RECORD), "file:1"), ensure_ascii=False)
    text.encode()
    json.loads(text, parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise Accepted(f"a number that is {name}")


def refused(call: Callable[[], Any]) -> None:
    """Calls what may refuse its input without ending the attempt."""
    with contextlib.suppress(InputError, OSError):
        call()


nothing = lambda folder: None

TARGETS = {
    "documents": Target(4, nothing, documents),
    "meta": Target(4, data_folder, meta),
    "lines": Target(6, data_folder, lines),
    "pairs": Target(3, data_folder, pairs),
    "prompts": Target(4, data_folder, questions_to_answer),
    "accuracies": Target(1, data_folder, accuracies),
    "questions": Target(2, data_folder, questions),
    "parquet": Target(3, data_folder, parquet),
    "pictures": Target(5, pictures, pixels),
    "messages": Target(5, data_folder, messages),
    "sampling": Target(3, nothing, sampling),
    "released_config": Target(8, released, released_config),
    "own_config": Target(5, own_model, own_config),
    "tokenizer": Target(5, byte_pairs, tokenizer_files),
    "vocabulary": Target(3, vocabulary, vocabulary_files),
    "pieces": Target(2, pieces, pieces_files),
    "safetensors": Target(3, safetensors, safetensors_file),
    "checkpoint": Target(2, checkpoint, checkpoint_files),
    "run_config": Target(8, experiments, run_config),
    "run_state": Target(4, run_state, state_files),
    "recorded": Target(1, recorded, recorded_files),
    "grading": Target(3, graders, grading),
    "frames": Target(8, open_ports, frames),
}
