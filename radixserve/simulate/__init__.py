"""What another policy of eviction, or another budget, would make of recorded traffic.

    replay.py    a trace through the real cache, with any policy and budget
    minimum.py   the same through a clairvoyant cache, as the limit of all policies
    chart.py     hit rates over budgets as an SVG picture
    command.py   `radixserve cache simulate`

A block of the trace is one token of the simulated cache. No model and no time passes: a request has
its K/V before the next one comes.
"""
