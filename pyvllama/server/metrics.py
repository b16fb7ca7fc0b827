"""What /metrics tells Prometheus: llama-server's names where it has them, ours for the rest."""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from pyvllama.server.answer import Answer
from pyvllama.server.model_pool import Loaded

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_REQUEST_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ENCODE_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server, in a registry of their own. Belongs to one event loop.

    Counters of tokens cover the answers that have ended.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "pyvllama_requests",
            "HTTP requests by method, route and status.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "pyvllama_request_seconds",
            "Time of an HTTP request, until the last byte is sent.",
            ("route",),
            buckets=_REQUEST_SECONDS,
            registry=self._registry,
        )
        self._encode_seconds = Histogram(
            "pyvllama_image_encode_seconds",
            "Time that encoding the new pictures of a request took.",
            buckets=_ENCODE_SECONDS,
            registry=self._registry,
        )
        self._images_cached = Counter(
            "pyvllama_images_cached", "Pictures that had been encoded before.", registry=self._registry
        )
        self._prompt_tokens = self._predicted_tokens = self._n_tokens_max = 0
        self._prompt_seconds = self._predicted_seconds = 0.0
        self._steps_gone = (0, 0)  # of models that were unloaded
        self._steps: dict[int, tuple[int, int]] = {}  # of each engine, when it was asked last
        self._loaded: Sequence[Loaded] = ()
        self._registry.register(_Models(self))

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request that has been answered."""
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_answer(self, answer: Answer) -> None:
        """One answer that has ended."""
        timings, usage = answer.timings, answer.usage
        self._prompt_tokens += timings.prompt_n
        self._prompt_seconds += timings.prompt_ms / 1000
        self._predicted_tokens += timings.predicted_n
        self._predicted_seconds += timings.predicted_ms / 1000
        self._n_tokens_max = max(self._n_tokens_max, usage.prompt_tokens + usage.completion_tokens)
        self._images_cached.inc(timings.image_cached)
        if timings.image_encode_ms:
            self._encode_seconds.observe(timings.image_encode_ms / 1000)

    def as_text(self, loaded: Sequence[Loaded] = ()) -> bytes:
        """All of them, in Prometheus' text format; `loaded` are the models in memory."""
        self._loaded = loaded
        try:
            return generate_latest(self._registry)
        finally:
            self._loaded = ()

    def families(self) -> Iterator[Metric]:
        """What is computed when it is asked for."""
        yield _counter("prompt_tokens", "Number of prompt tokens processed.", self._prompt_tokens)
        yield _counter("prompt_seconds", "Prompt process time in seconds.", self._prompt_seconds)
        yield _counter("tokens_predicted", "Number of generation tokens processed.", self._predicted_tokens)
        yield _counter("tokens_predicted_seconds", "Predict process time in seconds.", self._predicted_seconds)
        prompt = _rate(self._prompt_tokens, self._prompt_seconds)
        yield _gauge("prompt_tokens_seconds", "Average prompt throughput in tokens/s.", prompt)
        predicted = _rate(self._predicted_tokens, self._predicted_seconds)
        yield _gauge("predicted_tokens_seconds", "Average generation throughput in tokens/s.", predicted)
        yield _gauge("n_tokens_max", "Most tokens of a prompt and its answer so far.", self._n_tokens_max)
        served = [model.served for model in self._loaded]
        yield _gauge("requests_processing", "Number of requests processing.", sum(s.engine.n_active for s in served))
        yield _gauge("requests_deferred", "Number of requests deferred.", sum(s.engine.n_waiting for s in served))
        n_steps, n_busy = self._all_steps()
        yield _counter("n_decode", "Total number of llama_decode() calls.", n_steps)
        yield _gauge("n_busy_slots_per_decode", "Average number of busy slots per llama_decode() call.",
                     _rate(n_busy, n_steps))  # fmt: skip
        yield from self._of_models()

    def _all_steps(self) -> tuple[int, int]:
        """Of all engines that were ever seen: a counter does not fall when a model is unloaded."""
        now = {id(model.served): model.served.engine.n_steps for model in self._loaded}
        for key in [*self._steps]:
            seen = self._steps.pop(key)
            if key not in now or now[key] < seen:
                self._steps_gone = (self._steps_gone[0] + seen[0], self._steps_gone[1] + seen[1])
        self._steps = now
        all_of_them = [self._steps_gone, *now.values()]
        return sum(n for n, _ in all_of_them), sum(n for _, n in all_of_them)

    def _of_models(self) -> Iterator[Metric]:
        families = {
            name: GaugeMetricFamily(f"pyvllama_{name}", text, labels=("model",)) for name, text in _OF_A_MODEL.items()
        }
        for model in self._loaded:
            served = model.served
            n_images, image_bytes = served.images.n_kept
            values = (
                *(served.n_slots, served.engine.n_active, served.engine.n_waiting, served.n_open),
                *(n_images, image_bytes, model.card.n_bytes, served.load_ms / 1000),
            )
            for family, value in zip(families.values(), values, strict=True):
                family.add_metric((model.card.name,), value)
        yield from families.values()


_OF_A_MODEL = {
    "slots": "Answers that are generated at a time.",
    "active_slots": "Answers that are being generated.",
    "queue_length": "Answers that wait for a slot.",
    "open_requests": "Requests that have not ended; those whose pictures are read or encoded among them.",
    "cached_images": "Encoded pictures in memory.",
    "cached_image_bytes": "Their size.",
    "model_bytes": "Size of the model's files.",
    "model_load_seconds": "Time that loading the model took.",
}


class _Models:
    """What prometheus_client asks for families."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.families()

    def describe(self) -> Iterable[Metric]:
        return ()


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"llamacpp:{name}", text, value=value)  # `_total` is put behind it


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"llamacpp:{name}", text, value=value)


def _rate(n: float, seconds: float) -> float:
    return n / seconds if seconds else 0.0
