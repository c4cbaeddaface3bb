"""Training data of the demo, in the released formats, from the training split alone.

    FOLDER/images/VARIANT/IMAGE.png   pictures moved, mirrored and recoloured
    FOLDER/cpt.jsonl, cpt.json        pretraining text: pictures whose shape and colour the answers tell, with a caption
    FOLDER/sft.jsonl, sft.json        conversations: a picture and some of its questions, one a turn
    FOLDER/tokenizer                  a byte-level BPE of these texts
    FOLDER/recipe.json                what all of this was made for

The folder appears under its name once it is whole, and the same seed always gives the same files.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from demo import easy_vqa
from demo.recipe import DemoRecipe
from internvl_jax.data import INTERNVL2_5, Tokenizer, train_bpe
from internvl_jax.errors import InputError
from internvl_jax.files import whole_folder


def write(folder: pathlib.Path, recipe: DemoRecipe, progress: Callable[[], object]) -> None:
    """Writes all files, unless the folder is there already; `progress` is called after every variant.

    Raises:
      InputError: the folder was written for another recipe.
    """
    ours = json.loads(json.dumps(dataclasses.asdict(recipe)))
    if folder.exists():
        if json.loads((folder / "recipe.json").read_text()) != ours:
            raise InputError(f"{folder} was made for another recipe; give another workdir or delete this one")
        return
    with whole_folder(folder) as partial:
        _write_all(partial, folder, recipe, progress)
        (partial / "recipe.json").write_text(json.dumps(ours, indent=2) + "\n")


def _write_all(partial: pathlib.Path, folder: pathlib.Path, recipe: DemoRecipe, progress: Callable[[], object]) -> None:
    asked = collections.defaultdict(list)
    for question in easy_vqa.questions("train"):
        asked[question.image].append(question)
    pictures = {number: _read(path) for number, path in easy_vqa.image_paths("train").items()}
    with (partial / "cpt.jsonl").open("w") as cpt, (partial / "sft.jsonl").open("w") as sft:
        for variant in range(recipe.variants):
            (partial / "images" / str(variant)).mkdir(parents=True)
            for number, picture_HWC in pictures.items():
                rng = np.random.default_rng((recipe.seed, variant, number))
                repainted = easy_vqa.repaint(picture_HWC, rng)
                name = f"{variant}/{number}.png"
                Image.fromarray(repainted.picture_HWC).save(partial / "images" / name, compress_level=1)
                known = easy_vqa.facts(asked[number])
                if None not in known:
                    cpt.write(_line(name, repainted, caption_turns(known, repainted.renamed)))
                if variant < recipe.sft_variants:
                    chosen = choose(asked[number], recipe.turns, rng)
                    sft.write(_line(name, repainted, question_turns(chosen, repainted.renamed)))
            progress()
    for stage in ("cpt", "sft"):
        root, annotation = folder / "images", folder / f"{stage}.jsonl"
        meta = {"easy_vqa": {"root": str(root), "annotation": str(annotation), "data_augment": False}}
        (partial / f"{stage}.json").write_text(json.dumps(meta, indent=2) + "\n")
    (partial / "tokenizer").mkdir()
    train_tokenizer(asked, recipe.vocab).save(partial / "tokenizer")


def caption_turns(known: easy_vqa.Facts, renamed: dict[str, str]) -> list[dict[str, str]]:
    """A picture and its caption as pretraining text."""
    return [{"from": "pretrain", "value": f"<image>\n{easy_vqa.rename(easy_vqa.caption(known), renamed)}"}]


def choose(about: Sequence[easy_vqa.EasyQuestion], turns: int, rng: np.random.Generator) -> list[easy_vqa.EasyQuestion]:
    """At most `turns` of the questions, in random order.

    Seven of eight yes/no questions about colour name one that is not there, so "no such color" is nearly always right,
    and to compare the two is learned late. Therefore false claims are drawn as often as true ones; and questions for a
    name less often, since captions taught most of that.
    """
    weights = []
    for question in about:
        wrong_names = 7 if easy_vqa.kind(question) == "yes/no color" else 2
        weights.append({True: 1, False: 1 / wrong_names, None: 1 / 4}[easy_vqa.claim(question)])
    # Exponential waiting times, shorter for greater weights: a draw without replacement.
    order = np.argsort(rng.exponential(size=len(about)) / np.array(weights))
    return [about[i] for i in rng.permutation(order[:turns])]


def question_turns(chosen: Sequence[easy_vqa.EasyQuestion], renamed: dict[str, str]) -> list[dict[str, str]]:
    """A conversation that asks these questions; the picture stands before the first."""
    turns: list[dict[str, str]] = []
    for question in chosen:
        image = "" if turns else "<image>\n"
        turns.append({"from": "human", "value": image + easy_vqa.rename(question.text, renamed)})
        turns.append({"from": "gpt", "value": easy_vqa.rename(question.answer, renamed)})
    return turns


def train_tokenizer(asked: dict[int, list[easy_vqa.EasyQuestion]], vocab: int) -> Tokenizer:
    """A vocabulary in which the words of the questions, and the parts of the template's system text, are one token."""

    def texts() -> Iterator[str]:
        for about in asked.values():
            yield f"system\n{INTERNVL2_5.default_system}\nuser\nassistant\n"
            for question in about:
                yield f"{question.text}\n{question.answer}\na {question.answer}"

    return train_bpe(texts(), vocab)


def _read(path: pathlib.Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _line(name: str, repainted: easy_vqa.Repainted, turns: list[dict[str, str]]) -> str:
    height, width, _ = repainted.picture_HWC.shape
    return json.dumps({"id": name, "image": name, "width": width, "height": height, "conversations": turns}) + "\n"
