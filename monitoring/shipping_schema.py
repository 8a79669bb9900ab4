"""The tables logs are shipped into: one script per version, applied in order, never changed once released."""

from __future__ import annotations

import psycopg

from service.errors import NotReady

# Any number of its own: shippers that find no tables wait for the one that makes them.
_LOCK = 0x756E64657273

_V1 = """
CREATE SCHEMA IF NOT EXISTS understudy;
CREATE TABLE understudy.schema_version (version int NOT NULL);
INSERT INTO understudy.schema_version VALUES (0);

CREATE TABLE understudy.segments (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    log text NOT NULL,
    name text NOT NULL,
    writer text NOT NULL,
    shipped_bytes bigint NOT NULL DEFAULT 0,
    rows bigint NOT NULL DEFAULT 0,
    numbered bigint NOT NULL DEFAULT 0,
    damaged bigint NOT NULL DEFAULT 0,
    altered bigint NOT NULL DEFAULT 0,
    last_seq bigint NOT NULL DEFAULT 0,
    shipped_at timestamptz,
    UNIQUE (log, name)
);
COMMENT ON COLUMN understudy.segments.shipped_bytes IS 'where the next run goes on; moves with the rows';
COMMENT ON COLUMN understudy.segments.altered IS 'rows with U+FFFD for a NUL, which PostgreSQL cannot keep';

CREATE TABLE understudy.predictions (
    segment_id bigint NOT NULL REFERENCES understudy.segments,
    start bigint NOT NULL,
    seq bigint,
    request_id text NOT NULL,
    at timestamptz NOT NULL,
    role text NOT NULL,
    model_version text,
    model_digest text,
    prediction double precision NOT NULL,
    confidence text,
    fallback_reason text,
    shadow_sampled boolean,
    arm text,
    service_version text,
    record jsonb NOT NULL,
    PRIMARY KEY (segment_id, start)
);
CREATE INDEX ON understudy.predictions (request_id);
CREATE INDEX ON understudy.predictions (at);

CREATE TABLE understudy.shadow (
    segment_id bigint NOT NULL REFERENCES understudy.segments,
    start bigint NOT NULL,
    seq bigint,
    request_id text NOT NULL,
    at timestamptz,
    shadow text,
    outcome text NOT NULL,
    reason text,
    model_version text,
    model_digest text,
    prediction double precision,
    latency_ms double precision,
    record jsonb NOT NULL,
    PRIMARY KEY (segment_id, start)
);
CREATE INDEX ON understudy.shadow (request_id);

CREATE TABLE understudy.labels (
    segment_id bigint NOT NULL REFERENCES understudy.segments,
    start bigint NOT NULL,
    seq bigint,
    request_id text NOT NULL,
    label double precision NOT NULL,
    known_at timestamptz NOT NULL,
    at timestamptz,
    record jsonb NOT NULL,
    PRIMARY KEY (segment_id, start)
);
CREATE INDEX ON understudy.labels (request_id, known_at);

CREATE TABLE understudy.damaged (
    segment_id bigint NOT NULL REFERENCES understudy.segments,
    start bigint NOT NULL,
    bytes bigint NOT NULL,
    line bytea NOT NULL,
    PRIMARY KEY (segment_id, start)
);

CREATE VIEW understudy.writers AS
SELECT log, writer, count(*) AS segments, sum(rows)::bigint AS rows, sum(damaged)::bigint AS damaged,
       max(last_seq) AS last_seq, max(shipped_at) AS shipped_at,
       greatest(0, max(last_seq) - sum(numbered) - sum(damaged))::bigint AS missing
FROM understudy.segments GROUP BY log, writer;

-- One row per request: of several predictions the first; of several labels the one known last, then received last.
CREATE VIEW understudy.outcomes AS
SELECT p.request_id, p.at, p.role, p.model_version, p.model_digest, p.prediction, p.confidence, p.fallback_reason,
       p.arm, l.label, l.known_at, coalesce(l.lines, 0) AS label_lines, p.record
FROM understudy.predictions p
LEFT JOIN LATERAL (
    SELECT label, known_at, count(*) OVER () AS lines
    FROM understudy.labels
    WHERE request_id = p.request_id AND label IN (0, 1)
    ORDER BY known_at DESC, at DESC NULLS LAST, segment_id DESC, start DESC LIMIT 1
) l ON l.known_at >= p.at
WHERE NOT EXISTS (
    SELECT FROM understudy.predictions q
    WHERE q.request_id = p.request_id AND (q.at, q.segment_id, q.start) < (p.at, p.segment_id, p.start)
);
"""
VERSIONS = (_V1,)


def prepare(db: psycopg.Connection) -> None:
    """Make the tables, or bring them up to date; does nothing, and needs no right to, where they are current.

    Raises:
        NotReady: when they were made by a newer version of this project.
    """
    if version(db) < len(VERSIONS):
        with db.transaction():
            db.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
            for number in range(version(db), len(VERSIONS)):
                db.execute(VERSIONS[number].encode())
                db.execute("UPDATE understudy.schema_version SET version = %s", [number + 1])
    if version(db) > len(VERSIONS):
        msg = f"the tables have version {version(db)}, this project knows {len(VERSIONS)}; ship with the newer version"
        raise NotReady(msg)


def version(db: psycopg.Connection) -> int:
    """Return the version of the tables; 0 when there are none."""
    # Not to_regclass: after waiting for a lock it may still remember that there was no such schema (PostgreSQL 15).
    there = db.execute(
        "SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = 'understudy' AND c.relname = 'schema_version'"
    ).fetchone()
    if there is None:
        return 0
    found = db.execute("SELECT max(version) FROM understudy.schema_version").fetchone()
    return int(found[0]) if found is not None and found[0] is not None else 0
