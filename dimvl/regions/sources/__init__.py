"""Where images come from: the first step of extraction.

base.py     what a source is: images in a fixed order, and its parts; a list of files
shards.py   several files of images as one source
tar.py      WebDataset shards
parquet.py  Parquet files with image bytes, as datasets of Hugging Face
opening.py  which of these a path is
"""
