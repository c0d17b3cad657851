//! Logs, to standard error. Secrets have no `Debug` or `Display` of their own, and request targets are never logged, so
//! none gets here.

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{ConfigError, LogConfig, LogFormat};

/// What dependencies say that is of no use to whoever runs the node, or costs too much to say.
const QUIET: &str = "ractor=warn,ractor_cluster=error,rmcp=warn,hyper=warn,rustls=warn";

/// Starts logging.
///
/// # Errors
/// The filter is malformed, or logging has started already.
pub fn start(config: &LogConfig) -> Result<(), ConfigError> {
    let invalid = |error: String| ConfigError(format!("log.level: {error}"));
    let filter = EnvFilter::try_new(format!("{QUIET},{}", config.level))
        .map_err(|error| invalid(error.to_string()))?;
    let registry = tracing_subscriber::registry().with(filter);
    let started = match config.format {
        LogFormat::Json => registry
            .with(tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr))
            .try_init(),
        LogFormat::Text => {
            registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).try_init()
        }
    };
    started.map_err(|error| ConfigError(format!("log: {error}")))?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        // A literal says nothing of anybody's data; a message that was put together could.
        let message = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or("");
        tracing::error!(place, message, "panic");
    }));
    Ok(())
}
