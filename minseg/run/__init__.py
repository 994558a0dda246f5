"""What `train.py` and `infer.py` need beside the tricks.

| file | |
|---|---|
| `minseg.run.prepare` | options and data are checked, slides cut, folds made |
| `minseg.run.step` | a step that is fast and small, and watched |
| `minseg.run.predictor` | networks as a function for `minseg.tiling` |
| `minseg.run.scores` | the log, the score of a fold, and that of all |
| `minseg.run.checkpoint` | networks and their settings in files |
| `minseg.run.bands` | large images, written band by band |
| `minseg.run.report` | progress, curves, previews |
"""
