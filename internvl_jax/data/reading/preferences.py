"""Preference pairs as released (MMPR): a line has a question, the chosen and the rejected response.

    {"image": path, list of paths or nothing, "question": text, "chosen": text, "rejected": text}

with an optional "system_prompt" and noted sizes as other annotations have them, or a "video" in place of the image (its
frames have lines as the released code for MPO writes them); further keys are left alone. Both responses follow one
prompt: they share its tokens and its pictures.
Source: released `docs/internvl3.0/preference_optimization` and `internvl_chat_dpo.py`.
"""

from internvl_jax.data.reading import sources
from internvl_jax.data.text.templates import FRAME_MPO
from internvl_jax.errors import InputError


def parse_pair(line: bytes, name: str, dataset: sources.Dataset) -> sources.Record:
    """Checks the form of one line and resolves its image paths, which nothing is read from yet.

    Returns:
        A record of two dialogues, the first of which ends in the chosen response, the second in the rejected one.

    Raises:
        InputError: naming the line, if a text is missing or empty, or both responses are the same.
    """
    entry = sources.parse_entry(line, name)
    question, chosen, rejected = (sources.parse_text(entry, key, name) for key in ("question", "chosen", "rejected"))
    if chosen.strip() == rejected.strip():
        raise InputError(f"{name} has equal chosen and rejected responses, so it prefers nothing; remove the line.")
    prompt = sources.question_turns(question, sources.parse_system(entry, name))
    dialogues = tuple([*prompt, {"from": "gpt", "value": text}] for text in (chosen, rejected))
    return sources.record_of(entry, line, name, dataset, dialogues, FRAME_MPO)
