//! The numbered requirements that are built so far, in a sentence each. `docs/requirements.md` lists the tests of each;
//! it is written from the titles of the tests, and a test compares it.

/// A requirement: its number and what it asks for.
pub type Requirement = (&'static str, &'static str);

/// Sections in order.
pub const SECTIONS: &[(&str, &[Requirement])] = &[
    (
        "Phoenix wire",
        &[
            ("R1", "Every mount is served as a WebSocket, and the bare /user_socket"),
            ("R2", "V2 array frames for vsn 2.0.0, V1 object frames for 1.0.0 or none, others refused"),
            ("R3", "Joins, leaves, crashes and heartbeats as npm phoenix expects them"),
            ("R4", "Unknown topics and events are errors, not crashes"),
            ("R5", "A second join of a topic replaces the first"),
            ("R6", "A socket that is silent for 60 s is closed"),
            ("R7", "Binary pushes are decoded; what does not decode closes that connection alone with 1011"),
            ("R8", "A refused credential is 403 without a body"),
            ("R9", "Credentials by query, sub-protocol and headers"),
            ("R10", "No secret in any log, metric or error"),
            ("R11", "Messages over 1 MiB close with 1009; depth and poisoned keys are bounded"),
            ("R12", "Any origin by default; an allow-list is matched exactly"),
            ("R13", "A long-poll beside every WebSocket, to which the npm clients fall back"),
        ],
    ),
    (
        "Accounts, agents, keys",
        &[
            ("R14", "The operator's credential, users and their tokens, over REST and CLI"),
            ("R15", "Open registration, limited per address, can be switched off"),
            ("R16", "Owned agents, and claiming agents by key"),
            ("R17", "Keys of 256 random bits, stored as hashes, with kinds, scopes and expiry"),
            ("R18", "Rotated and revoked keys lose their live sockets within 2 s"),
            ("R19", "Sessions with a lifetime, and logout"),
            ("R20", "A user acts as one of their agents, and only theirs"),
            ("R21", "Public keys, and their change under the old key's signature"),
            ("R22", "Without a public key an agent cannot sign"),
            ("R23", "Statuses: who is stopped cannot connect and is not found"),
        ],
    ),
    (
        "Agent socket",
        &[
            ("R24", "Takes an agent's key, not a user's token"),
            ("R25", "agent:<id> only for the own id"),
            ("R26", "task.stream_chunk only from the provider"),
            ("R27", "Hiring, task and message events reach the agent"),
            ("R28", "Joining is being online at once; leaving is noticed within the stated times"),
            ("R29", "task_stream for provider and client"),
        ],
    ),
    (
        "Hirer socket",
        &[
            ("R30", "Takes a user's token, not an agent's key"),
            ("R31", "hirer:<id> only for the own id"),
            ("R32", "Hiring events and task.submitted with their payloads"),
            ("R33", "task.submitted when a task is created for one of the user's agents"),
            ("R34", "task_stream for the owner of the client agent only"),
            ("R35", "Unknown tasks and those of others give the same answer"),
        ],
    ),
    (
        "Task stream",
        &[
            ("R36", "The join reply says where the stream stands"),
            ("R37", "Replay, then live: no gap, no repeat, whatever lands during the join"),
            ("R38", "The shape of a chunk"),
            ("R39", "Seq from 1, one more per chunk, the same on every path"),
            ("R40", "Kinds chat and artifact"),
            ("R41", "One end, and nothing after it"),
            ("R42", "Late joiners of finished streams"),
            ("R43", "Bounded memory; the store has the whole stream"),
            ("R44", "Resuming after a seq"),
            ("R45", "A slow reader reads from the log, and costs nobody anything"),
            ("R46", "Rates with a time to come back; acknowledged means durable"),
            ("R47", "Content: non-empty, bounded, valid Unicode"),
            ("R48", "Chunks only for active tasks; the first begins a pending one"),
            ("R49", "Emission over REST"),
            ("R50", "Emission over MCP"),
            ("R51", "The paths interleave into one seq"),
            ("R52", "The same idempotency key is the same chunk"),
        ],
    ),
    (
        "Presence and discovery",
        &[
            ("R53", "What is tracked of an agent"),
            ("R54", "presence_state once, then presence_diff"),
            ("R55", "Several connections are several metas of one key"),
            ("R56", "Filters of online discovery, at most 100 results"),
            ("R57", "The main socket takes keys and sessions"),
            ("R58", "A socket can be closed by whose it is"),
            ("R59", "Topics of the main socket"),
            ("R60", "30 joins a minute of one agent"),
            ("R61", "The snapshot at a join"),
            ("R62", "discover: fields and order"),
            ("R63", "discover: status filter"),
            ("R64", "update_metadata: merge, bound, protected keys"),
            ("R65", "announce: persisted and broadcast"),
            ("R66", "Blocked pairs do not see each other"),
        ],
    ),
    (
        "Tasks and hirings",
        &[
            ("R140", "Tasks and hirings over REST, each for its parties"),
            ("R141", "A hiring and its task in one transaction (money comes with the ledger)"),
            ("R143", "Hiring an offline agent fails unless it is queued"),
        ],
    ),
    (
        "Message types",
        &[("R129", "Teams: messages, votes with a period, knowledge, escalation; for members only")],
    ),
    (
        "Across everything",
        &[
            ("R166", "State survives kill -9 on the embedded store"),
            ("R167", "Every authorisation rule has a negative test"),
            ("R168", "Health, readiness, metrics, orderly shutdown"),
            ("R169", "Limits are configurable"),
            ("R170", "TLS natively; plain only on loopback or when told so"),
            ("R171", "Time is an argument"),
            ("R172", "Events, endpoints and errors in documents made from the code"),
        ],
    ),
];
