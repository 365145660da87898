"""Chaos: a mixed workload while workers, fork servers, supervisors and clients are killed and stopped at random.

::

    driver ──starts──▶ clients ──calls──▶ supervisor, workers ──append──▶ ledger (one line per run of a call)
      └──kills, stops──▶ all of them                 └── accepted (one line per call whose acceptance was acknowledged)

Afterwards `audit` compares the ledger, which knows nothing of pynenc, with what is in the database. By hand it is run with
`python -m tests.chaos --seconds 60 --seed 7`; `tests/faults/test_chaos.py` runs it shortly.
"""
