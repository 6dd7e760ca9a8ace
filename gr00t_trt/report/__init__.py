"""Records as one HTML page that needs nothing else, and as pictures: `gr00t-trt report RECORD...`. Never imports torch.

published.json   NVIDIA's own figures, each with its source; published.py shows them
intake.py        files -> records whose every known field is of the right kind
timings.py       latencies, and the parts that a request's is made of
readings.py      what was tried, how fast it was and how exact
markup.py        elements whose text is always escaped; figures.py writes numbers
charts.py        bars, stacks and points, drawn in percent so that they fit every width
tables.py        the same figures to the last digit, and the environment
findings.py      the sentences: answers, warnings, what was not measured
sections.py      the sections that are charts
page.py          everything in its order; style.css and script.js go into the page
pictures.py      the same as PNG
__main__.py      the command
"""
