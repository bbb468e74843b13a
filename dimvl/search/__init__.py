"""Search: the images of a region store embedded once into an index, and found by texts or by other images.

format.py    the files of an index: manifest, parts, codes; the fingerprint of a model
writer.py    writes an index part by part, so that an interrupted run continues
indexing.py  the images of a store through the image tower of a model into an index
index.py     opens an index by memory map; exact search
approximate.py  the images in lists of similar ones, of which a search compares only the nearest
queries.py   texts and images as queries; the best images scored again by the matching head
page.py      results as a page of images with their regions

CLIP and ALBEF search by the product of embeddings; ALBEF and BLIP let the matching head score the best ones again.
"""
