"""A tiny data folder in the released format, for tests of the data flow."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from internvl_jax import data

TEXT = "one red square and two blue circles stand left of a small green triangle"
WORDS = TEXT.split()


def turns(*values):
    return [{"from": "system", "value": "s"}] + [
        {"from": ("human", "gpt")[k % 2], "value": value} for k, value in enumerate(values)
    ]


@dataclasses.dataclass
class TinyData:
    """A folder with annotations of every kind; `entries` is its meta file, which `write_meta` writes."""

    folder: pathlib.Path
    entries: dict

    @property
    def meta(self) -> str:
        return str(self.folder / "meta.json")

    def write_meta(self, **entries):
        self.entries = entries or self.entries
        (self.folder / "meta.json").write_text(json.dumps(self.entries))
        return self.meta

    def annotate(self, name: str, records: list, **options) -> dict:
        """Writes NAME.jsonl and returns its meta entry."""
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
        return {"root": str(self.folder), "annotation": str(path), "repeat_time": 1, **options}

    def picture(self, name: str, width: int, height: int) -> dict:
        """Writes a picture and returns the record fields that name it."""
        noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(self.folder / name)
        return {"image": name, "width": width, "height": height}


@pytest.fixture(scope="session")
def processor() -> data.Processor:
    image = data.ImageConfig(
        tile_size=8, tokens_per_tile=2, min_tiles=1, max_tiles=5, thumbnail=True, apply_exif=False, max_pixels=10_007
    )
    return data.Processor(image, data.train_bpe([TEXT], 293), data.get_template("internvl2_5"))


@pytest.fixture
def tiny(tmp_path) -> TinyData:
    """11 texts, 7 single images, 3 samples of two images, 2 pretraining texts."""
    made = TinyData(tmp_path, {})
    texts = [
        {"id": k, "conversations": turns("how many?", " ".join(WORDS[: 1 + k]), "more?", WORDS[k])} for k in range(11)
    ]
    singles = [
        {**made.picture(f"p{k}.png", 13 + 8 * k, 17), "conversations": turns("<image>\nwhat?", WORDS[k])}
        for k in range(7)
    ]
    pairs = [
        {
            "image": ["p0.png", f"p{k + 1}.png"],
            "width_list": [13, 13 + 8 * (k + 1)],
            "height_list": [17, 17],
            "conversations": turns("<image>\n<image>\nthe same?", "no"),
        }
        for k in range(3)
    ]
    pretrain = [{"conversations": [{"from": "pretrain", "value": " ".join(WORDS[k:])}]} for k in range(2)]
    made.write_meta(
        texts=made.annotate("texts", texts, length=11),
        singles=made.annotate("singles", singles, data_augment=True),
        pairs=made.annotate("pairs", pairs, max_dynamic_patch=4),
        pretrain=made.annotate("pretrain", pretrain),
    )
    return made
