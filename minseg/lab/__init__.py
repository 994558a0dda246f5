"""Programs that measure, and draw. What they write lies in docs/results/ and docs/figures/.

`study` asks which trick helps (`effects`, how sure that is; `seams`, where errors lie); `bench` and
`steps` how fast and how large things are; `audit` whether they compute what other libraries do;
`labels` finds images whose labels are wrong; `compare` sets two runs side by side; `figures` and
`maps` draw what the docstrings show (`plots` and `sheet` are their pens).
"""
