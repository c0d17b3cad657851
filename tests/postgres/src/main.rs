//! Runs a command beside a PostgreSQL server that lives as long, whose URL it finds in `TEST_MUSTER_STORE_URL`.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on ends, and says why")]

use std::process::{Command, ExitCode};

use muster_test_postgres::Server;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        eprintln!("usage: muster-test-postgres COMMAND [ARGUMENT...]");
        return ExitCode::from(2);
    };
    let server = Server::start();
    let status =
        Command::new(program).args(words).env("TEST_MUSTER_STORE_URL", server.url("postgres")).status();
    drop(server);
    match status {
        Ok(status) => ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)),
        Err(error) => {
            eprintln!("muster-test-postgres: {error}");
            ExitCode::FAILURE
        }
    }
}
