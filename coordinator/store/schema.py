"""The coordinator's tables. A change here needs a migration beside it; a test compares the two."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

Count = BigInteger().with_variant(Integer, "sqlite")
"""A whole number that the wire carries as uint32; SQLite's INTEGER holds 64 bits anyway."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

nodes = Table(
    "nodes",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("node_class", String(8), nullable=False),
    Column("status", String(8), nullable=False),  # invited, enrolled, disabled
    Column("ledger_public_key", LargeBinary, nullable=False),  # empty until it joined
    Column("created_at", Float, nullable=False),
    Column("last_seen_at", Float, nullable=False),
    Column("hello", LargeBinary, nullable=False),  # the newest Hello, serialized; empty before
)

quarantines = (
    Table(  # nodes that are shut out; apart, so that an older database's nodes can be read
        "quarantines",
        metadata,
        Column("node", String(63), ForeignKey("nodes.name"), primary_key=True),
        Column("why", Text, nullable=False),
    )
)

tokens = Table(
    "tokens",
    metadata,
    Column("secret_hash", String(64), primary_key=True),
    Column("node", String(63), ForeignKey("nodes.name"), nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("redeemed_by", String(64), nullable=False),  # digest of the public key, or empty
    Column("redeemed_at", Float, nullable=False),
    Column("chain", LargeBinary, nullable=False),  # what was answered, for a lost reply
    # Empty, "needed" (an operator's), "waiting" for that, "confirming" (for the steward's word
    # too), "approved", "confirmed" or "rejected".
    Column("approval", String(16), nullable=False, server_default=""),
    Column("approved_by", String(255), nullable=False, server_default=""),
)

users = Table(
    "users",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("roles", String(255), nullable=False),  # comma-separated
    Column("project", String(63), nullable=False),
    Column("last_used_at", Float, nullable=False, server_default="0"),
)

invitations = Table(  # the newest of each person, also after it was redeemed
    "invitations",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("secret_hash", String(64), nullable=False, unique=True),
    Column("roles", String(255), nullable=False),  # comma-separated
    Column("project", String(63), nullable=False),
    Column("invited_by", String(63), nullable=False),
    Column("invited_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("withdrawn", Boolean, nullable=False),  # whom it invites was revoked
    Column("redeemed_by", String(64), nullable=False),  # digest of the public key, or empty
    Column("redeemed_at", Float, nullable=False),
    Column("chain", LargeBinary, nullable=False),  # what was answered, for a lost reply
)

certificates = Table(
    "certificates",
    metadata,
    Column("fingerprint", String(64), primary_key=True),
    Column("spiffe_id", String(255), nullable=False, index=True),
    Column("not_before", Float, nullable=False),
    Column("not_after", Float, nullable=False),
    Column("revoked", Boolean, nullable=False),
    Column("generation", Integer, nullable=False, server_default="1"),  # within its identity
    Column("superseded", Boolean, nullable=False, server_default=false()),  # by a later one in use
    Column("key_digest", String(64), nullable=False, server_default="", index=True),  # SHA-256
    Column("chain", LargeBinary, nullable=True),  # what a renewal was answered, until it is in use
    Column("superseded_at", Float, nullable=False, server_default="0"),
    Column("issuer", String(64), nullable=False, server_default=""),  # issuing certificate's digest
    Column("bundle", String(64), nullable=False, server_default=""),  # digest of the roots with it
)

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("project", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    Column("submitted_by", String(63), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("spec", LargeBinary, nullable=False),
    Column("resolved", Text, nullable=False),  # the Job as JSON, settings filled in
    Column("task_hash", String(64), nullable=False),
    Column("status", String(16), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    Column("mandate", LargeBinary, nullable=False, server_default=""),  # SignedMandate; or empty
    UniqueConstraint("submitted_by", "request_id"),
)

journal = Table(
    "journal",
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.job_id"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("event", LargeBinary, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.job_id"), primary_key=True),
    Column("kind", String(8), primary_key=True),  # initial, round, answer
    Column("round", Count, primary_key=True),
    Column("digest", String(64), nullable=False, index=True),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("project", String(63), nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("holder", String(255), nullable=False),  # empty when it was given back
    Column("epoch", BigInteger, nullable=False),  # grows with each change of hands
    Column("expires_at", Float, nullable=False),
    Column(
        "address", String(511), nullable=False, server_default=""
    ),  # see coordinator/replicas/replicas.py
)

checked_updates = Table(  # what replicas found that took them whole; until their round is over
    "checked_updates",
    metadata,
    Column("attempt_id", String(64), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("job_id", String(64), nullable=False, index=True),
    Column("bytes", BigInteger, nullable=False),
    Column("fault", Text, nullable=False),  # why it does not count, or empty
)

averages = Table(  # what any replica may average; until the leader has taken what was made
    "averages",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("work", String(64), nullable=False),  # digest of all that goes into it
    Column("event", LargeBinary, nullable=False),  # what was made, as JSON; empty before
)

accounts = Table(
    "accounts",
    metadata,
    Column("account", String(127), primary_key=True),
    Column("node", String(63), ForeignKey("nodes.name"), nullable=False),
    Column("filter", String(8), nullable=False),
    Column("rdp_order", Integer, nullable=False),
    Column("epsilon_limit", Float, nullable=False),
    Column("epsilon_limit_highest", Float, nullable=False),  # before the first entry of kind limit
    Column("delta", Float, nullable=False),
    Column("posted_units", BigInteger, nullable=False),
    Column("guarantee", Boolean, nullable=False),
    Column("entries", Integer, nullable=False),
    Column("head_hash", String(64), nullable=False),
)

entries = Table(
    "entries",
    metadata,
    Column("account", String(127), ForeignKey("accounts.account"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("kind", String(8), nullable=False),
    Column("attempt_id", String(64), nullable=False),
    Column("project", String(63), nullable=False),
    Column("node", String(63), nullable=False),
    Column("dataset", String(63), nullable=False),
    Column("job_id", String(64), nullable=False),
    Column("round", Count, nullable=False),
    Column("unit", String(16), nullable=False),
    Column("declared_n", BigInteger, nullable=False),
    Column("mechanism", String(32), nullable=False),
    Column("noise_multiplier", Float, nullable=True),
    Column("sample_rate", Float, nullable=False),
    Column("steps", Count, nullable=False),
    Column("prev_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("node_signature", LargeBinary, nullable=False),
    # Of kind limit: its fields as JSON; attempt_id is then the raise's digest, and what only a
    # release has is empty or 0.
    Column("limit_change", Text, nullable=True),
    UniqueConstraint("attempt_id", "kind"),
    Index("ix_entries_job_id", "job_id"),
)

checkpoints = Table(  # never changed; each signs the heads of all accounts at one moment
    "checkpoints",
    metadata,
    Column("number", BigInteger, primary_key=True),
    Column("prev_hash", String(64), nullable=False),
    Column("root", String(64), nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("leaves", LargeBinary, nullable=False),  # one a line
    Column("made_at", Float, nullable=False),
)

countersignatures = Table(  # what each node has signed of its own accounts' chains
    "countersignatures",
    metadata,
    Column("account", String(127), ForeignKey("accounts.account"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("hash", String(64), nullable=False),
    Column("node_signature", LargeBinary, nullable=False),
)

reservations = Table(  # open reservations only; a row goes when its attempt is resolved
    "reservations",
    metadata,
    Column("attempt_id", String(64), primary_key=True),
    Column("account", String(127), ForeignKey("accounts.account"), nullable=False, index=True),
    Column("job_id", String(64), nullable=False, index=True),
    Column("units", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("accounted", Boolean, nullable=False),
)

backups = Table(  # each that was written whole; kept here, as another process writes them
    "backups",
    metadata,
    Column("made_at", Float, primary_key=True),  # when what it holds was read
    Column("bytes", BigInteger, nullable=False),
    Column("keys", Boolean, nullable=False),  # whether the installation's keys are in it
)

pauses = Table(  # every pause and resumption of all work, in their order; never changed
    "pauses",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("paused", Boolean, nullable=False),  # from then on
    Column("by", String(63), nullable=False),
    Column("reason", Text, nullable=False),
)

epochs = Table(  # each restoration of this database from a backup; never changed
    "epochs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),  # from 2
    Column("restored_at_s", BigInteger, nullable=False),
    Column("backup_made_at_s", BigInteger, nullable=False),
    Column("checkpoint_number", BigInteger, nullable=False),
    Column("checkpoint_hash", String(64), nullable=False),
    Column("heads_root", String(64), nullable=False),
    Column("prev_hash", String(64), nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("heads", Text, nullable=False),  # JSON: [account, seq, hash] of every account's head
)

reconciled = Table(  # accounts whose nodes have handed in, at each epoch; never changed
    "reconciled",
    metadata,
    Column("account", String(127), ForeignKey("accounts.account"), primary_key=True),
    Column("epoch", Integer, ForeignKey("epochs.number"), primary_key=True),
    Column("seq", Integer, nullable=False),  # of the chain's newest entry then
    Column("at", Float, nullable=False),
)
