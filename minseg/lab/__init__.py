"""Programs that measure, and draw. They write into docs/results/ and docs/figures/.

| file | |
|---|---|
| `minseg.lab.study` | which trick helps |
| `minseg.lab.effects` | and how sure that is |
| `minseg.lab.seams` | where in a tile the errors lie |
| `minseg.lab.bench` | how fast and how large things are |
| `minseg.lab.steps` | the same, of training steps |
| `minseg.lab.audit` | whether all computes what other libraries do |
| `minseg.lab.labels` | which labels are wrong |
| `minseg.lab.annotations` | polygons of large slides, regions that nobody labelled |
| `minseg.lab.compare` | two runs side by side |
| `minseg.lab.figures` | the pictures of the docstrings |
| `minseg.lab.maps` | those of them that show a network at work |
| `minseg.lab.plots` | plots of results |
| `minseg.lab.sheet` | the paper and the colours of all |
"""
