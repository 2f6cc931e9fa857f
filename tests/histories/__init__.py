"""Random histories of one coordinator and two nodes whose ledgers are backed up, lost and put back.

Both ledgers are files and speak over real gRPC; a seed says everything that happens.
`python -m tests.histories MODE FIRST LAST` plays seeds.
"""
