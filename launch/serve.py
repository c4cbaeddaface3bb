"""Serves a model: OpenAI's API, and a page to talk to it.

    python -m launch.serve --checkpoint=DIR --port=8000

says `ready` with its address once everything is compiled. Only this machine reaches it, unless --host says otherwise;
then clients need a key, from --api_key_file or $INTERNVL_API_KEY. Ctrl-C or SIGTERM ends it: answers that were begun
are finished, others refused.

Decoupled, the vision tower and the language model run in servers of their own, as many as suit each:

    python -m launch.serve --checkpoint=DIR --role=vision --port=9000
    python -m launch.serve --checkpoint=DIR --role=language --vision=127.0.0.1:9000 --port=8000
"""

from absl import flags

from internvl_jax.errors import InputError
from launch import checkpoint, serving, together

_ROLE = flags.DEFINE_enum("role", "all", ["all", "vision", "language"], "which half of the model this server has")
