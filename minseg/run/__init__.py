"""What `train.py` and `infer.py` need beside the tricks.

| file | what it holds |
|---|---|
| `minseg.run.step` | a fast and small training step: 16 bits, recomputed activations, EMA |
| `minseg.run.predictor` | trained networks as a fast function for `minseg.tiling` |
| `minseg.run.options` | the command lines of both programs, and the recipes |
| `minseg.run.prepare` | checks options and data, cuts slides, makes folds |
| `minseg.run.loop` | what goes on around the training loop: save, resume, stop, watch, log |
| `minseg.run.scores` | the log, the score of a fold, the score of all folds |
| `minseg.run.checkpoint` | networks and their settings in files |
| `minseg.run.outputs` | the files that `infer.py` writes, and what made them |
| `minseg.run.bands` | large images, written band by band |
| `minseg.run.report` | progress, curves, previews |
| `minseg.run.errors` | errors as one line with a remedy |
"""
