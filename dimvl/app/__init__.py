"""The page of `dimvl app`: exports tried on images in a browser.

results.py  what a model says about an image, and the regions that it rests on
exports.py  the exports, index, store and images that the page uses; an image opened with its regions
markup.py   results as HTML, every text escaped
page.py     the page as Gradio components; page.css and page.js are its looks and what happens in the browser
server.py   the page served: only the routes that it needs, requests of bounded size

Gradio draws the page and carries events. Images do not pass through its files: the browser sends them inside an event
and gets them back inside HTML, so nothing is written and no route needs to serve a file.
"""
