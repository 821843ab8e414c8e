"""A model server's limits in a sentence each. Pure."""

from collections.abc import Iterator

from models.upstreams import FlowLimits, ModelServer, Upstreams


def say_limits(server: ModelServer, upstreams: Upstreams) -> str:
    """What the settings say of how it may be called, a space before each; empty if they say nothing."""
    sentences = [_say_flow("", server.flow)]
    told: set[str] = set()
    for name, route in upstreams.routes.items():
        sent = route.model or name
        if route.server is server and route.flow is not None and sent not in told:
            told.add(sent)
            sentences.append(_say_flow(f"{name}: ", route.flow))
    if server.active_hours is not None:
        sentences.append(f"Called in these hours: {server.active_hours}.")
    return "".join(f" {each}" for each in sentences if each)


def _say_flow(title: str, flow: FlowLimits) -> str:
    parts = list(_parts(flow))
    if not parts:
        return ""
    words = f"{title}{', '.join(parts)}."
    return words[0].upper() + words[1:] if not title else words


def _parts(flow: FlowLimits) -> Iterator[str]:
    if flow.max_in_flight is not None:
        yield f"{'at most' if flow.adaptive else 'always'} {flow.max_in_flight} calls in flight"
    if flow.requests_per_minute is not None:
        yield f"at most {flow.requests_per_minute:,.10g} requests a minute"
    if flow.tokens_per_minute is not None:
        yield f"at most {flow.tokens_per_minute:,.10g} tokens a minute"
