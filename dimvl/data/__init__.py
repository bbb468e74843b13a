"""Annotations to batches: readers, texts, examples, sampler, ragged batch, scenes."""
