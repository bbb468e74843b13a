"""Studies: a grid of settings, points and seeds, trained and evaluated by commands of dimvl, and compared.

config.py   the keys of a study
stages.py   the grid to stages, each one command; those that settings share are one stage
runner.py   runs the stages that have not ended, several at a time
results.py  scores, intervals and differences, as JSON, a table and a figure
figure.py   the figure
"""
