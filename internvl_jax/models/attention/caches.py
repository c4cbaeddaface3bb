"""The caches that a decoder may be given, alike in `mask`, `place`, `write`, `attend`, `within` and `laid`."""

from typing import TypeAlias

from internvl_jax.models.attention.cache import SlotCache
from internvl_jax.models.attention.group_cache import GroupCache
from internvl_jax.models.attention.page_cache import PageCache

Cache: TypeAlias = SlotCache | GroupCache | PageCache
