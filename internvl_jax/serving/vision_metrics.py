"""What Prometheus reads of towers and of the two ends of the wire, by the names that SGLang has for encoders."""

from internvl_jax.inference import TileFeatures
from internvl_jax.serving.dvd import VisionClient, VisionServer
from internvl_jax.serving.metrics import Metrics


def add_vision_client(metrics: Metrics, client: VisionClient) -> None:
    """Adds what a language server knows of its vision servers."""
    counters = lambda: client.counters
    state = lambda: client.state
    metrics.gauge("vision_servers", "Vision servers that can be asked", lambda: state().servers)
    metrics.gauge("vision_requests", "Requests that wait for features", lambda: state().requests)
    metrics.gauge("vision_credits", "Tiles that were asked for and have not come", lambda: state().credits)
    metrics.gauge("vision_reserved_bytes", "Bytes of features on their way", lambda: state().reserved_bytes)
    metrics.gauge("vision_cache_bytes", "Bytes of features that are kept", lambda: state().cache_bytes)
    metrics.count("mm_cache_queries", "Tiles whose features were needed", lambda: counters().asked)
    metrics.count("mm_cache_hits", "Those of them that were there", lambda: counters().cached)
    metrics.count("vision_received_bytes", "Bytes of features that came", lambda: counters().received_bytes)
    metrics.count("vision_sent_bytes", "Bytes of pixels that went", lambda: counters().sent_bytes)
    metrics.count("vision_moved", "Requests that went to another vision server", lambda: counters().moved)
    metrics.count("vision_lost", "Connections that were lost", lambda: counters().lost)


def add_own_tower(metrics: Metrics, tiles: TileFeatures) -> None:
    """Adds what a server knows of the features that its own tower makes."""
    metrics.count("mm_cache_queries", "Tiles whose features were needed", lambda: tiles.asked)
    metrics.count("mm_cache_hits", "Those of them that were there", lambda: tiles.found)


def add_vision_server(metrics: Metrics, server: VisionServer) -> None:
    """Adds what a vision server knows of itself."""
    counters = lambda: server.counters
    state = lambda: server.state
    metrics.gauge("encoder_clients", "Language servers that are connected", lambda: state().clients)
    metrics.gauge("encoder_queue", "Tiles that wait for the tower", lambda: state().queued)
    metrics.gauge("encoder_credits", "Tiles that were asked for and have not been sent", lambda: state().credits)
    metrics.gauge("encoder_cache_bytes", "Bytes of features that are kept", lambda: state().cache_bytes)
    metrics.count("encoder_tiles", "Tiles that passed the tower", lambda: counters().tiles)
    metrics.count("encoder_batches", "Batches of tiles that passed the tower", lambda: counters().batches.total())
    metrics.count("encoder_failed", "Batches that the tower failed with", lambda: counters().failed)
    metrics.count("encoder_model_forward_seconds", "Seconds in the tower", lambda: counters().tower_seconds)
    metrics.count("encoder_queue_wait_seconds", "Seconds of all tiles in the queue", lambda: counters().queue_seconds)
    metrics.count("encoder_tiles_asked", "Distinct tiles of requests", lambda: counters().asked)
    metrics.count("encoder_cache_hits", "Those of them that had passed before", lambda: counters().cached)
    metrics.count("encoder_sent_bytes", "Bytes of features that went", lambda: counters().sent_bytes)
    metrics.count("encoder_refused", "Messages and greetings that were refused", lambda: counters().refused)
