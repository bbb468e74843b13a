"""Bootstrapping of noisy captions: a captioner writes synthetic ones, and a filter keeps what fits, of both.

config.py   the keys of `dimvl bootstrap`
texts.py    captions of the web, streamed and matched with a region store
writing.py  one block of images: captions written, all texts scored
run.py      blocks over processes; the settings that a folder belongs to
results.py  blocks to caption files, a report and a page

CapFilt of BLIP (Li et al., ICML 2022): from one pretrained checkpoint, a captioner and a filter are fine-tuned
separately on clean pairs; one synthetic caption per image by nucleus sampling; texts that the matching head calls
unmatched are dropped, of both kinds; what is left trains a new model. Its code was not published. Here images are
regions, and a region store is read instead of images.
"""
