"""Loads a server and measures what its users wait for.

  python -m launch.bench_serve --checkpoint=DIR --serve=--rows=16 --rate=2 --pictures=448x448
  python -m launch.bench_serve --url=http://127.0.0.1:8000 --concurrency=16 --pictures=896x896,none --seconds=60

Pictures of 448x448, 896x896 and 1792x1344 have 1, 5 and 13 tiles for the released models. Each request shows another
picture unless --pool says otherwise, so that caches don't flatter. A server that wants a key finds it in
$INTERNVL_API_KEY. The last line of stdout is JSON: rates, percentiles (seconds) of the first token, of token to token
and of whole answers, goodput within --first_limit and --token_limit, what was not answered and why, and what the client
itself took of a processor (`client.cpu`).
"""

import json

from absl import flags

from benchmarks import serving
from launch import main

_URL = flags.DEFINE_string("url", None, "a server that runs")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "a model to start a server with")
_SERVE = flags.DEFINE_multi_string("serve", [], "a flag of launch.serve for that server; may be given several times")
_VISION = flags.DEFINE_integer("vision_servers", 0, "of that server, which then has no tower of its own", 0)
_RATE = flags.DEFINE_float("rate", None, "requests a second that arrive at random; without it, --concurrency", 1e-6)
_CONCURRENCY = flags.DEFINE_integer("concurrency", 1, "requests under way, one sent as one ends", 1)
_SECONDS = flags.DEFINE_float("seconds", 30, "for how long requests are sent", 0.1)
_WARM = flags.DEFINE_float("warm", 3, "seconds of the same load before, which don't count", 0)
_PICTURES = flags.DEFINE_list("pictures", ["448x448"], "of the requests in turn: WxH, several as WxH+WxH, or none")
_POOL = flags.DEFINE_integer("pool", 0, "different pictures of each size; 0: each request shows another one", 0)
_WORDS = flags.DEFINE_string("words", "8-32", "of a question")
_TOKENS = flags.DEFINE_string("tokens", "32", "of an answer, as 32 or 16-64")
_STREAM = flags.DEFINE_bool("stream", True, "answers come piece by piece")
_SEED = flags.DEFINE_integer("seed", 0, "of everything that is random", 0)
_FIRST = flags.DEFINE_float("first_limit", 1, "seconds to the first token that a user is content with")
_TOKEN = flags.DEFINE_float("token_limit", 0.1, "seconds from token to token that a user is content with")
flags.mark_flags_as_mutual_exclusive(["url", "checkpoint"], required=True)


def _main(argv: list[str]) -> None:
    traffic = serving.OfferedLoad(
        rate=_RATE.value,
        concurrency=_CONCURRENCY.value,
        seconds=_SECONDS.value,
        warm=_WARM.value,
        pictures=serving.sizes_of(_PICTURES.value),
        pool=_POOL.value,
        words=serving.range_of(_WORDS.value, "words"),
        tokens=serving.range_of(_TOKENS.value, "tokens"),
        stream=_STREAM.value,
        seed=_SEED.value,
    )
    goal, started = serving.Goal(_FIRST.value, _TOKEN.value), (_CHECKPOINT.value, _SERVE.value, _VISION.value)
    if _URL.value is None:
        print(json.dumps(serving.measured_of(*started, traffic, goal)))
    else:
        print(json.dumps(serving.measured(_URL.value, traffic, goal)))


if __name__ == "__main__":
    main.run(_main)
