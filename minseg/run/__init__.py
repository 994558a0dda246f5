"""What `train.py` and `infer.py` need beside the tricks.

`prepare` brings a run's data; `step` makes a step fast and keeps an eye on it; `predictor` turns
networks into a function for `tiling`; `scores` says how good a run is; `checkpoint` keeps it;
`bands` and `report` write large images, pictures and progress.
"""
