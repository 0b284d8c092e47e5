"""Several servers behind one address: which of them gets a request.

    index.py       which server has which blocks
    policy.py      the choice, as functions of what a gateway knows
    simulation.py  servers and gateways without processes, in the time of a trace
    arguments.py   the options of the command
    command.py     `radixserve cluster simulate`

Knows no sockets and no HTTP. Gateway and simulation use the same index and policies.
"""
