"""The yardsticks: what Overnight costs beside a bare loop, on the machine at hand."""
