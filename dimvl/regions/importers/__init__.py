"""Importers: region features from other projects into region stores; see docs/importing.md.

All of them raise a `UserError` for what is missing, damaged or invalid: for a file when a source is opened, and for an
image, which the import skips, when it is decoded.
"""
