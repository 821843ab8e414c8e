"""The server under examination, with the batches and webhooks that cases share."""

from functools import cached_property

from tests.conformance.kit.hooks import Hooks
from tests.conformance.kit.runs import Runs
from tests.conformance.kit.server import Server


class Subject(Server):
    """A server, its shared batches, and a receiver of its webhooks."""

    @cached_property
    def hooks(self) -> Hooks:
        """The receiver, and the endpoint that points to it."""
        return Hooks(self)

    @cached_property
    def runs(self) -> Runs:
        """The shared batches; begun after the webhook endpoint stands."""
        assert self.hooks is not None
        return Runs(self)

    def begin(self) -> None:
        """Begin what takes its time."""
        assert self.runs is not None

    def close(self) -> None:
        """Close what was opened."""
        if "runs" in self.__dict__:
            self.runs.close()
        if "hooks" in self.__dict__:
            self.hooks.close()
        super().close()
