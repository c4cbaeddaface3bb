"""Families of language models: a module with one record each, and a line here."""

from internvl_jax.errors import InputError
from internvl_jax.models.config import TextConfig
from internvl_jax.models.language.families import gpt_oss, internlm2, qwen2, qwen3
from internvl_jax.models.language.families.record import Family, Kind

FAMILIES = {
    family.name: family
    for family in (
        qwen3.RECORD,
        gpt_oss.RECORD,
        qwen2.RECORD,
        internlm2.RECORD,
    )
}


def family_of(config: TextConfig) -> Family:
    """The record of a model's family; InputError where there is none of that name."""
    if config.family not in FAMILIES:
        raise InputError(f"text config: the family {config.family!r} is unknown; known are {', '.join(FAMILIES)}")
    return FAMILIES[config.family]


def kind_of(config: TextConfig) -> Kind:
    """The released architecture of a model; InputError where its family has no such one."""
    return family_of(config).kind(config)
