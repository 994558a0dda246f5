"""Programs that measure and draw. They run from a clone, as `python -m lab.study`, and write into
docs/results/ and docs/figures/.

| file | |
|---|---|
| `lab.study` | which trick helps |
| `lab.race` | train.py beside the recipe of other libraries |
| `lab.small` | the same on data sets of five images |
| `lab.magnifications` | slides of two magnifications, with and without `--microns` |
| `lab.effects` | and how sure that is |
| `lab.peers` | the recipe of other libraries |
| `lab.harness` | what study, race and small share: runs that can stop and go on |
| `lab.seams` | where in a tile the errors are |
| `lab.shifts` | why a pixel's answer depends on its tile |
| `lab.pages` | writes what was measured into five pages of docs/ |
| `lab.bench` | how fast and how large things are |
| `lab.gpu` | the same on a GPU, in one command |
| `lab.checks` | and whether its results are right |
| `lab.parts` | runs such parts: each in a process of its own, with a limit of time |
| `lab.whole` | slides from file to file, beside peers and beside another commit |
| `lab.audit` | whether everything computes what other libraries compute |
| `lab.planted` | whether `labels.py` finds wrong labels |
| `lab.mutants` | whether the tests notice a broken line |
| `lab.figures` | the figures of the docstrings |
| `lab.plots` | charts of results |
| `lab.style` | the style of all figures |
| `lab.measure` | what these programs share |
"""
