//! placeholder
use crate::run::RunError;
/// x
#[derive(clap::Args)]
pub struct DemoArguments {}
/// x
pub async fn run(_: DemoArguments) -> Result<(), RunError> {
    Ok(())
}
