"""The single processes: `api`, `worker`, `beat`; for compose, Kubernetes and `overnight up`."""
