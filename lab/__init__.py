"""Programs that measure, and draw. They write into docs/results/ and docs/figures/.

| file | |
|---|---|
| `lab.study` | which trick helps |
| `lab.effects` | and how sure that is |
| `lab.seams` | where in a tile the errors lie |
| `lab.bench` | how fast and how large things are |
| `lab.steps` | the same, of training steps |
| `lab.audit` | whether all computes what other libraries do |
| `lab.labels` | which labels are wrong |
| `lab.annotations` | polygons of large slides, regions that nobody labelled |
| `lab.compare` | two runs side by side |
| `lab.figures` | the pictures of the docstrings |
| `lab.maps` | those of them that show a network at work |
| `lab.plots` | plots of results |
| `lab.sheet` | the paper and the colours of all |
"""
