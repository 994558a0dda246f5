"""The rest of what `train.py` and `infer.py` need, apart from the tricks.

| file | content |
|---|---|
| `minseg.run.step` | a training step that saves time and memory: 16 bits, recomputed activations |
| `minseg.run.predictor` | trained networks as a fast function for `minseg.tiling` |
| `minseg.run.options` | the command lines of both programs, and the recipes |
| `minseg.run.config` | config.json: what a run was made from, and with |
| `minseg.run.describe` | what a data set holds, in a few lines |
| `minseg.run.prepare` | checks options and data, cuts slides, makes folds |
| `minseg.run.clean` | deletes tiles that no run uses any more |
| `minseg.run.loop` | around the training loop: save, resume, stop, watch for bad losses, log |
| `minseg.run.scores` | the log, the score of a fold, the score of all folds |
| `minseg.run.checkpoint` | files of networks and their settings |
| `minseg.run.outputs` | the files that `infer.py` writes, each with a record of its origin |
| `minseg.run.bands` | large images, written band by band |
| `minseg.run.report` | progress, curves, previews |
| `minseg.run.errors` | errors as one line with a remedy |
"""
