"""What a fresh agent's policy and data sets look like: nothing is allowed, everything is shown."""

from typing import Final

POLICY_YAML: Final = """\
# The data steward's policy. What is not allowed here is refused, whoever asks.
# The agent reads this file again when it changes.

accounts: []
# An account is a population of patients and what may ever be learned from it.
# - name: patients
#   epsilon_limit: 10.0        # the most that may ever be spent, at delta
#   delta: 1.0e-5              # below 1/patients; write 1.0e-5: YAML reads 1e-5 as text
#   filter: auto               # auto, gdp (full batches) or rdp (sampling too)
#   rdp_order: 0               # filter: rdp needs one, from 2; no job can ask for less epsilon
#                              # than it starts at: `feddp agent status`; auto: limit / 4 at most
#   epsilon_per_job_max: 5.0   # the most for one job
#   epsilon_per_purpose: {training: 8.0, evaluation: 2.0}   # for all jobs of a kind together
#   epsilon_per_project: {default: 6.0}                     # likewise of a project
#   noise_multiplier_min: 0.3  # the least noise in one release
#   unaccounted: refuse        # allow: releases without noise; voids the guarantee for ever

stewards: []
# Who may raise an account's limit, two of them together; once an account has entries, a higher
# epsilon_limit above does nothing by itself. Each makes a key: `feddp agent limit key NAME`.
# - {name: anna, public_key: "64 hexadecimal digits"}
# - {name: bert, public_key: "64 hexadecimal digits"}

disjoint_patients: ""
# Needed for more than one account: why no patient is in two of them, signed by a steward together
# with the data sets of each. A patient in two would spend both budgets, and neither limit would
# hold. `feddp agent vouch` prints the three further lines, disjoint_data_sets, disjoint_signed_by
# and disjoint_signature; again when a data set is new or changes its account.

allow: []
# Which installed tasks may run on which data set; the hash pins the task's code. `feddp agent
# status` lists the installed ones as NAME@HASH; compare them with what the engineer asks for.
# - data_set: heart-disease
#   tasks: ["tabular-classifier@HASH"]

who_may_ask:
# Whose orders are taken. An engineer makes a key, `feddp job key new`, and gives you its public
# half by another way than the coordinator, which then cannot order what nobody has signed.
  unsigned: refuse             # allow: take what the coordinator sends, signed or not
  days_max: 31                 # how long before its end a signature is accepted
  engineers: []
# - {name: anna, public_key: "64 hexadecimal digits", projects: [default]}

withdrawn: []
# Data sets that nothing may be learned from any more, at once; [heart-disease]

work: {}
# When and how the node works; unset: always, with what agent.yaml gives a worker.
#   hours: ["20:00-06:00"]     # this machine's local time; what has begun goes on
#   threads_max: 4
#   memory_bytes_max: 8000000000
#   gpus_max: 0
#   approve_first_job: true    # a project's first job waits: `feddp agent approve --list`

outcome_tick_s: 1.0            # seconds; outcomes leave at a multiple fixed before data is opened

share_failure_class: false
# true: the coordinator is told of what kind a failure was also after data was opened (DATA_PROBLEM,
# OUT_OF_MEMORY, TOO_LONG, ...). Whether and how training fails can depend on one patient's record,
# and no epsilon covers what is told of it: share it while a data set is set up, if at all. In any
# case the sentence, the remedy and the log are here: `feddp agent logs JOB`.

transfer: {}
# When and how fast models and updates larger than 128 KiB move; unset: always, at full speed.
#   megabits_per_second_max: 50
#   hours: ["20:00-06:00"]     # this machine's local time; a round may go on without this node
"""

DATASETS_YAML: Final = """\
# The data sets that this node offers. What stands here is published; the records are not.
# The agent reads this file again when it changes.

data_sets: []
# - name: heart-disease
#   source: data/train.csv     # .csv, .parquet or .sql, from this folder or absolute
#   patient: patient_id        # the column that says whose record a row is; never published, and
#                              # not among columns
#   label: disease             # the column that holds 0 or 1; never published
#   declared_n: 200            # patients, typed by you and public; never counted
#   version: 1                 # raise it when the records change
#   account: patients          # who pays, for ever; one account unless the patients differ
#   rows_per_patient_max: 1000 # a patient's further rows are left out, in an order of no meaning
#   consent: {column: research_consent, values: ["yes"]}   # others are not read; see
#   opt_out: opt-out.txt       # docs/hospital-it.md. The list: an id a line; it must exist
#   database:                  # for a .sql source: one SELECT, asked in a read-only transaction
#     url: postgresql+psycopg://reader@db.hospital.example/omop    # no password here
#     password_file: db.password   # or password_env: FEDDP_SOURCE_...
#     read_s: 5.0              # seconds that the query may take
#   columns:
#     age: number
#     sex: {category: [Male, Female]}
"""
