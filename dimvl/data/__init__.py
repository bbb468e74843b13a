"""Annotations to batches: readers, texts, documents, sampler, ragged batch, scenes."""
