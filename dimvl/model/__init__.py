"""Rows to rows: embeddings, decoupled attention, encoder, heads."""
