"""Visual concepts without box labels: a detector of words, trained from captions.

words.py    captions to lemmas with parts of speech
data.py     regions and captions to features and labels
train.py    features and labels to a `ConceptNamer`
measure.py  average precision, and pointing at people's boxes
renaming.py a store to one with the words of its regions
"""
