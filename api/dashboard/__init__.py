"""The dashboard: a page without a build step, that speaks to the same API as everybody else."""
