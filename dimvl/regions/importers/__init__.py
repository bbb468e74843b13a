"""Importers: region features that others have published or extracted, into region stores; see docs/importing.md."""
