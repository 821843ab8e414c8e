"""A batch's life in reading order: validate, shard, run, finalize; and sweep, which mends the rest."""
