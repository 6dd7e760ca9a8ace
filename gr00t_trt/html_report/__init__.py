"""Records as one HTML page that needs nothing else, and as pictures: `gr00t-trt report RECORD...`. Never imports torch.

published.json   NVIDIA's own figures, each with its source
intake.py        files -> records whose every known field is of the right kind
readings.py      records -> what was tried, and how fast and how exact it was
markup.py        elements whose text is always escaped
charts.py        bars, stacks and points, drawn in percent so that they fit every width
tables.py        the same figures to the last digit, and the environment
findings.py      the sentences: answers, warnings, what was not measured
page.py          everything in its order; style.css and script.js go into the page
pictures.py      the same as PNG
__main__.py      the command
"""
