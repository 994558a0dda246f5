"""Run: what surrounds the loops of `train.py` and `infer.py`.

| file | content |
|---|---|
| `minseg.run.options` | the command lines of both programs, and the recipes |
| `minseg.run.prepare` | checks options and data, cuts slides, makes folds |
| `minseg.run.tiles` | cuts each slide once into training tiles on disk |
| `minseg.run.config` | config.json: what a run was made from, and with |
| `minseg.run.describe` | what a data set holds, in a few lines |
| `minseg.run.loop` | around the training loop: save, resume, stop, watch for bad losses, log |
| `minseg.run.scores` | the log, the score of a fold, the score of all folds |
| `minseg.run.checkpoint` | files of networks and their settings |
| `minseg.run.outputs` | the files that `infer.py` writes, each with a record of its origin |
| `minseg.run.bands` | large images, written band by band |
| `minseg.run.report` | progress, curves, previews |
| `minseg.run.errors` | errors as one line with a remedy |
| `minseg.run.memory` | gives freed memory back to the system |
| `minseg.run.clean` | deletes tiles that no run uses any more |
"""

import sys

from .. import predictor, training

# The names that these had in minseg 0.1.
sys.modules |= {"minseg.run.predictor": predictor, "minseg.run.step": training}
