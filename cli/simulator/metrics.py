"""How busy the server is, in the Prometheus text of the real servers.

Names and labels: vLLM's docs/design/metrics.md, SGLang's docs/references/production_metrics.md,
llama.cpp's tools/server/README.md.
"""

from cli.simulator.answer import Answer
from cli.simulator.settings import Metrics, SimulatorSettings

_NAMES: dict[Metrics, tuple[str, str]] = {
    "vllm": ("vllm:num_requests_running", "vllm:num_requests_waiting"),
    "sglang": ("sglang:num_running_reqs", "sglang:num_queue_reqs"),
    "llamacpp": ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
}
_HEADERS = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"


def write_metrics(settings: SimulatorSettings, *, running: int, waiting: int) -> Answer:
    """The two gauges. The model is the first one served, or `simulated` where any name is."""
    dialect = settings.metrics or "vllm"
    model = settings.models[0] if settings.models else "simulated"
    quoted = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    labels, form = {
        "vllm": (f'{{engine="0",model_name="{quoted}"}}', ".1f"),
        "sglang": (f'{{model_name="{quoted}"}}', ".1f"),
        "llamacpp": ("", "d"),
    }[dialect]
    texts = ("Requests in service.", "Requests in the queue.")
    lines = [
        f"# HELP {name} {text}\n# TYPE {name} gauge\n{name}{labels} {value:{form}}\n"
        for name, text, value in zip(_NAMES[dialect], texts, (running, waiting), strict=True)
    ]
    return Answer("".join(lines).encode(), headers=_HEADERS)
