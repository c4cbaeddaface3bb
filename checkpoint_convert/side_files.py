"""The files beside the weights: what travels from a checkpoint to the next one, and what a format needs besides.

Files travel as they are. What a format has of a processor and of a chat template, and did not travel, is written from
the processor of this project.
"""

import json
import pathlib
from typing import Any

from absl import logging

from checkpoint_convert.sink import write_json
from internvl_jax.data import Processor, Template
from internvl_jax.errors import InputError
from internvl_jax.validation import read_json

# The config.json that a checkpoint came with, kept beside the one of this project.
RELEASED_CONFIG = "released_config.json"

_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model")
_TOKENIZER = (*_VOCABULARY, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_GENERATION = "generation_config.json"
_OF_FORMAT = {
    # The GitHub format is loaded by code that lies beside it. It is never run here.
    "github": ("preprocessor_config.json", "chat_template.*", "*.py"),
    "hf": ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "chat_template.*"),
}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def has_tokenizer(directory: pathlib.Path) -> bool:
    return any((directory / name).exists() for name in ("tokenizer.json", "vocab.json", "tokenizer.model"))


def carry(source: pathlib.Path, directory: pathlib.Path, source_form: str | None, form: str) -> None:
    """Copies what may travel.

    Args:
      source, directory: the checkpoint that is read, and the one that is written.
      source_form: released format that the files of `source` belong to ('github', 'hf'), None if to neither.
      form: 'github', 'hf' or 'orbax', which keeps the files of a released format for the way back.

    Raises:
      InputError: a file can't be read.
    """
    patterns = [*_TOKENIZER, _GENERATION]
    if source_form is not None and form in (source_form, "orbax"):
        patterns += _OF_FORMAT[source_form]
    for pattern in patterns:
        for file in sorted(source.glob(pattern)):
            try:
                content = file.read_bytes()
            except OSError as error:
                raise InputError(f"{file} can't be read ({error.strerror}); copy or download it again") from error
            (directory / file.name).write_bytes(content)


def complete(directory: pathlib.Path, form: str, processor: Processor) -> None:
    """Writes what a released format needs for its model to be used at once, and what did not travel.

    Args:
      directory: holds the tokenizer files.
      form: 'github' or 'hf'.
    """
    _unless_there(
        directory / _GENERATION, {"eos_token_id": list(processor.stop_ids), "pad_token_id": processor.tokenizer.pad}
    )
    image = processor.image_config
    if form == "github":
        _unless_there(directory / "preprocessor_config.json", _github_preprocessor(image.tile_size))
        _write_template(directory, processor.template, "<image>")
        if not (directory / _AUTO_CODE).exists():
            logging.warning(
                "%s has no %s: to load it with transformers' AutoModel, copy the *.py files of any released "
                "InternVL3.5 checkpoint in GitHub format beside it",
                directory,
                _AUTO_CODE,
            )
        return
    tokens = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = read_json(directory / "tokenizer_config.json")
    if not tokenizer.keys() & {"extra_special_tokens", *tokens}:
        tokenizer |= {"extra_special_tokens": tokens, "processor_class": "InternVLProcessor"}
        write_json(directory / "tokenizer_config.json", tokenizer)
    preprocessor = {
        "crop_to_patches": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        **_IMAGENET,
        "image_processor_type": "GotOcr2ImageProcessor",
        "max_patches": image.max_tiles,
        "min_patches": image.min_tiles,
        "processor_class": "InternVLProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": image.tile_size, "width": image.tile_size},
    }
    _unless_there(directory / "preprocessor_config.json", preprocessor)
    _unless_there(
        directory / "processor_config.json",
        {"image_seq_length": image.tokens_per_tile, "processor_class": "InternVLProcessor"},
    )
    _write_template(directory, processor.template, "<IMG_CONTEXT>")


def _github_preprocessor(side: int) -> dict[str, Any]:
    """The one of the release. Tiles are cut by whoever loads it; this says how each becomes numbers."""
    return {
        "crop_size": side,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        **_IMAGENET,
        "resample": 3,
        "size": side,
    }


def _write_template(directory: pathlib.Path, template: Template, picture: str) -> None:
    settings = directory / "tokenizer_config.json"
    within = settings.exists() and "chat_template" in read_json(settings)
    if not within and not any(directory.glob("chat_template.*")):
        (directory / "chat_template.jinja").write_text(jinja(template, picture), encoding="utf-8")


def jinja(template: Template, picture: str = "<IMG_CONTEXT>") -> str:
    """The template as transformers reads it.

    A picture becomes `picture` and a newline, which the processor there turns into as many tokens as it takes: that of
    transformers <IMG_CONTEXT>, those of servers that load the GitHub format <image>.
    """
    end = template.end + template.after_end
    heads = {"system": template.system_head, "user": template.user_head}
    heads["assistant"] = template.assistant_head + template.speech.answer_head
    text = "{%- set heads = " + json.dumps(heads) + " -%}"
    if template.default_system is not None:
        opening = json.dumps(template.system_head + template.default_system + end, ensure_ascii=False)
        text += "{%- if messages[0]['role'] != 'system' -%}{{ " + opening + " }}{%- endif -%}"
    return text + (
        "{%- for message in messages -%}{{ heads[message['role']] }}"
        "{%- if message['content'] is string -%}{{ message['content'] }}"
        "{%- else -%}{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'text' -%}{{ part['text'] }}"
        "{%- elif part['type'] == 'video' -%}{{ '<video>\\n' }}"
        "{%- else -%}{{ " + json.dumps(f"{picture}\n") + " }}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}{{ " + json.dumps(end) + " }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ " + json.dumps(template.assistant_head) + " }}{%- endif -%}"
    )


_AUTO_CODE = "modeling_internvl_chat.py"


def _unless_there(file: pathlib.Path, values: dict[str, Any]) -> None:
    if not file.exists():
        write_json(file, values)
