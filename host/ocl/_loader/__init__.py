"""Reading, decoding and batching of samples, in step over workers and ranks, resumable in the middle of an epoch."""
