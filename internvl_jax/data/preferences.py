"""Preference pairs in the released MMPR format: `{"image", "question", "chosen", "rejected"}` a line.

The two responses become two dialogues about the same images. Source: released `internvl_chat_dpo.py`, which reads
MMPR-v1.2, with `system_prompt` where a line has one.
"""

import dataclasses
import json

from internvl_jax.data import sources
from internvl_jax.errors import InputError


def parse_pair(line: bytes, name: str, dataset: sources.Dataset) -> sources.Record:
    """Checks one line: the record's first dialogue ends in the chosen response, its second in the rejected one.

    Raises:
        InputError: naming the line, if it is no pair.
    """
    try:
        entry = json.loads(line)
    except ValueError as error:  # covers bytes that are not UTF-8
        raise InputError(f"{name} is not valid JSON: {error}.") from error
    if not isinstance(entry, dict):
        raise InputError(f"{name} is a {type(entry).__name__}; a pair is a JSON object.")
    for field in ("question", "chosen", "rejected"):
        if not isinstance(entry.get(field), str) or not entry[field].strip():
            raise InputError(f'{name} has no text under "{field}"; a pair has "question", "chosen" and "rejected".')
    if entry["chosen"] == entry["rejected"]:
        raise InputError(f"{name} has equal chosen and rejected responses, which prefer nothing; remove the line.")
    system = entry.get("system_prompt")
    if system is not None and not isinstance(system, str):
        raise InputError(f'{name} has a "system_prompt" that is no text.')
    before = [{"from": "system", "value": system}] if system else []
    before.append({"from": "human", "value": entry["question"]})
    # Images and their noted sizes are written as in a conversation.
    asked = {**entry, "conversations": before}
    record = sources.parse_record(json.dumps(asked).encode(), name, dataset)
    answers = ([*before, {"from": "gpt", "value": entry[field]}] for field in ("chosen", "rejected"))
    return dataclasses.replace(record, dialogues=tuple(answers))
