"""Records shown: in a terminal, in Markdown, as one HTML page that needs nothing else, and as pictures. No torch.

views.py         what a result is called and what it is held against
tables.py        every figure a column; terminal.py, markdown.py and page.py write the tables
charts.py        bars, stacks and points; svg.py and png.py draw them
findings.py      the sentences of a page: answers, warnings, what was not measured
published.json   NVIDIA's own figures, each with its source; published.py shows them
markup.py        elements whose text is always escaped; style.css and script.js go into the page
"""
