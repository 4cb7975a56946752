"""Errors that users can cause and mend, in a module that imports nothing."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written, or does not fit the model."""


class ShardError(RuntimeError):
    """A shard or one of its samples is damaged, or the shards do not suffice."""
