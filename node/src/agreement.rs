//! `muster agreement verify`: checking an agreement without any server.

use std::io::Read;
use std::path::Path;

use muster_protocol::negotiation::agreement;
use muster_protocol::signing::PublicKey;

use crate::run::RunError;

/// Bytes of a file that are read: an agreement has some KiB.
const FILE_BYTES_MAX: u64 = 1_048_576;

/// Checks the agreement in a file, and gives what holds, in sentences.
///
/// # Errors
/// It cannot be read, or something does not hold.
pub fn verify(file: &Path, server_key: Option<&str>) -> Result<String, RunError> {
    let pinned = server_key.map(PublicKey::parse).transpose();
    let pinned =
        pinned.map_err(|refusal| format!("--server-key: {}", refusal.message.unwrap_or_default()))?;
    let text = read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let holds = agreement::read(&text).and_then(|document| {
        let holds = document.verify(pinned.as_ref())?;
        Ok(format!("agreement {} holds:\n- {}", document.id, holds.join("\n- ")))
    });
    holds.map_err(|broken| format!("the agreement does not hold: {broken}").into())
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let reader: Box<dyn Read> = match file.to_str() {
        Some("-") => Box::new(std::io::stdin()),
        _ => Box::new(std::fs::File::open(file)?),
    };
    reader.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}
