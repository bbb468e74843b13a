"""A server of predictions over HTTP: `dimvl serve`; see docs/serving.md.

A request is checked, waits, and is computed in one batch with others by one thread.

models.py    the exports and adapters that are served, by name
requests.py  the fields of each kind of request, read from JSON or a form
jobs.py      requests computed together: regions of all images, then one prediction per model and kind
batching.py  the thread that takes waiting requests in batches
app.py       the HTTP interface: limits, metrics, pages
running.py   the address, and a stop that finishes what was accepted
"""
