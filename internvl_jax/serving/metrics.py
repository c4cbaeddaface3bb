"""What Prometheus reads of a server, by the names that vLLM's dashboards know. Nothing of any request's content."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKENS = (1, 8, 32, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class _Read(Collector):
    """A counter that somebody else counts."""

    def __init__(self, name: str, what: str, read: Callable[[], float]):
        self._name, self._what, self._read = name, what, read

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._what, value=self._read())


class Metrics:
    """Numbers of one server, in a registry of its own: several servers of a process don't share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def gauge(self, name: str, what: str, read: Callable[[], float]) -> None:
        """Adds a value that is read when somebody asks."""
        Gauge(f"internvl:{name}", what, registry=self.registry).set_function(read)

    def count(self, name: str, what: str, read: Callable[[], float]) -> None:
        """Adds a number that only rises, and that is read when somebody asks."""
        self.registry.register(_Read(f"internvl:{name}", what, read))

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)


class ApiMetrics(Metrics):
    """What a server counts that answers clients."""

    def __init__(self) -> None:
        super().__init__()
        registry = self.registry

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"internvl:{name}", what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"internvl:{name}", what, buckets=buckets, registry=registry)

        self.success = counter("request_success", "Requests answered in full", "finished_reason")
        self.refused = counter("request_refused", "Requests refused or failed", "status")
        self.rejected = counter("admission_rejections", "Requests refused because too many wait")
        self.aborted = counter("request_aborted", "Requests whose clients went away")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts, as the model reads them")
        self.image_tokens = counter("image_tokens", "Those of them that are of pictures")
        self.cached_tokens = counter("prefix_cache_hits", "Tokens of prompts that had been read before")
        self.queried_tokens = counter("prefix_cache_queries", "Tokens of prompts that were looked for")
        self.generation_tokens = counter("generation_tokens", "Tokens of answers")
        self.queued = histogram("request_queue_time_seconds", "From a prompt that is ready until it has a row")
        self.read = histogram("request_prefill_time_seconds", "From there to its first token")
        self.first = histogram("time_to_first_token_seconds", "From a request to its first token")
        self.between = histogram("inter_token_latency_seconds", "Between two tokens of an answer")
        self.paced = histogram(
            "request_time_per_output_token_seconds", "From the first token of a request's answers on, by token"
        )
        self.whole = histogram("e2e_request_latency_seconds", "From a request to its end")
        self.prepared = histogram("request_prepare_seconds", "Decoding of pictures, tiles and tokens of a request")
        self.looked = histogram("request_vision_seconds", "Until a vision server has given the features of a request")
        self.decoded = histogram("request_decode_time_seconds", "From the first token of an answer to its last")
        self.step = histogram("iteration_seconds", "A step of the engine")
        self.step_size = histogram("iteration_tokens_total", "Tokens that a step reads and writes", _TOKENS)
        self.prompt_size = histogram("request_prompt_tokens", "Tokens of a prompt", _TOKENS)
        self.answer_size = histogram("request_generation_tokens", "Tokens of an answer", _TOKENS)

    def stepped(self, seconds: float, tokens: int) -> None:
        """Notes a step of the engine."""
        self.step.observe(seconds)
        self.step_size.observe(tokens)
