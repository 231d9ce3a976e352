"""How fast the pool is, beside a stock manager, the limit of the machine, and other libraries.

    python -m tests.benchmarks [--quick] [--json FILE] [--only ROW ...] [--no-peers]

Reading order: `rows` says what is measured, `things` what is lent and what is done with it; `ours`,
`stock`, `limits` and `peers` are those who do it; `clients` are the processes that call, `measure`
interleaves them; `figures` are to be reached, `report` prints.
"""
