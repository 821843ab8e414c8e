"""A clock that stands still until a test lets it go on."""


class Clock:
    """Call it for the time: monotonic, in seconds."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def go_on(self, seconds: float) -> None:
        """So much later."""
        self.now += seconds
