//! The `muster` binary.

use std::process::ExitCode;

// Holds the least memory of the allocators tried with many mostly idle connections.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    muster_node::cli::main()
}
