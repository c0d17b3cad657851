//! The command line.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use http::Method;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::cluster::certificates::{self, CertificateArguments};
use crate::config::{self, Config, ConfigError, Sources};
use crate::http::client::Client;
use crate::run::{self, RunError};
use crate::{agreement, demo, documents, logging, system_clock};

/// A realtime server for fleets of AI agents.
#[derive(Parser)]
#[command(name = "muster", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node.
    Serve(Serve),
    /// Run a node in a fresh folder with a small fleet that streams, and print how to try it.
    Demo(demo::DemoArguments),
    /// Print the configuration that the given sources come to.
    Config(Serve),
    /// Write the documents that are made from the code into a checkout.
    Docs {
        /// The checkout.
        #[arg(default_value = ".")]
        root: PathBuf,
    },
    /// Say whether a node is ready; fails when it is not.
    Ready {
        #[command(flatten)]
        server: Server,
    },
    /// Users, as the operator.
    #[command(subcommand)]
    User(UserCommand),
    /// Users' tokens, as the operator.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Agents.
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Agreements.
    #[command(subcommand)]
    Agreement(AgreementCommand),
    /// Nodes.
    #[command(subcommand)]
    Cluster(ClusterCommand),
}

/// Where the configuration comes from.
#[derive(Args)]
struct Serve {
    /// Configuration file (TOML).
    #[arg(long, env = "MUSTER_CONFIG")]
    config: Option<PathBuf>,
    /// Address and port to listen on: `http.listen`.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Folder of the embedded store: `store.data_dir`.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// PostgreSQL instead of the embedded store, as `postgres://USER@HOST/DATABASE`: `store.url`. With a password, better
    /// in MUSTER_STORE_URL: arguments are shown to everybody on the machine.
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// How nodes of a cluster reach each other: `cluster.transport`.
    #[arg(long, value_name = "auto|redis")]
    cluster_transport: Option<String>,
    /// Any setting by name, such as `stream.ack=memory`.
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    set: Vec<(String, String)>,
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Serve {
    fn load(self) -> Result<Config, ConfigError> {
        let mut flags = self.set;
        if let Some(listen) = self.listen {
            flags.push(("http.listen".into(), json!(listen).to_string()));
        }
        if let Some(data_dir) = self.data_dir {
            flags.push(("store.data_dir".into(), json!(data_dir).to_string()));
        }
        if let Some(store) = self.store {
            flags.push(("store.url".into(), json!(store).to_string()));
        }
        if let Some(transport) = self.cluster_transport {
            flags.push(("cluster.transport".into(), json!(transport).to_string()));
        }
        config::load(&Sources { file: self.config, environment: std::env::vars().collect(), flags })
    }
}

/// Which server, and as whom.
#[derive(Args)]
struct Server {
    /// Address of the server.
    #[arg(long, env = "MUSTER_URL", default_value = "http://127.0.0.1:4000")]
    url: String,
    /// Token to show: the operator's, or a user's where a command says so.
    #[arg(long, env = "MUSTER_ADMIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// PEM file with the certificates to trust; the system's when absent.
    #[arg(long)]
    ca: Option<PathBuf>,
}

#[derive(Subcommand)]
enum UserCommand {
    /// Create a user.
    Create {
        /// Name for people.
        name: String,
        #[command(flatten)]
        server: Server,
    },
    /// List users.
    List {
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Issue a token to a user; it is shown this once.
    Create {
        /// Id of the user.
        user: String,
        /// Name for people.
        #[arg(long)]
        label: Option<String>,
        /// What it may be used for: connect, read, write; all when absent.
        #[arg(long)]
        scope: Vec<String>,
        /// When it ends, ISO-8601.
        #[arg(long)]
        expires_at: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// List a user's tokens, without their secrets.
    List {
        /// Id of the user.
        user: String,
        #[command(flatten)]
        server: Server,
    },
    /// Revoke a token; its sockets close.
    Revoke {
        /// Id of the user.
        user: String,
        /// Id of the token.
        token_id: String,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Subcommand)]
enum AgentCommand {
    /// Register an agent: a user's own when `--token` is a user's, otherwise without an owner.
    Register {
        /// Name for people.
        #[arg(long)]
        name: String,
        /// `did:<method>:<id>`.
        #[arg(long)]
        did: String,
        /// What it can do; may be given several times.
        #[arg(long)]
        capability: Vec<String>,
        /// fixed, auction or hybrid.
        #[arg(long, default_value = "fixed")]
        pricing_model: String,
        /// What it asks.
        #[arg(long, default_value = "0")]
        base_price: String,
        /// Ed25519 key for its signatures, base64 or hex.
        #[arg(long)]
        public_key: Option<String>,
        /// Whether `--token` is a user's, to whom the agent shall belong.
        #[arg(long)]
        owned: bool,
        #[command(flatten)]
        server: Server,
    },
    /// List a user's agents; `--token` is the user's.
    List {
        #[command(flatten)]
        server: Server,
    },
    /// Set an agent's status, as the operator: active, inactive, draft, suspended or banned.
    Status {
        /// Id of the agent.
        agent: String,
        /// The status.
        status: String,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Subcommand)]
enum AgreementCommand {
    /// Check an agreement without any server: every signature, the texts that were signed, the amount, its bound.
    Verify {
        /// File with the agreement, bare or as the API answers it; `-` reads standard input.
        file: PathBuf,
        /// The server's public key, base64 or hex, as `GET /api/v1/server-key` shows it.
        #[arg(long)]
        server_key: Option<String>,
    },
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Make an authority of the cluster's own and certificates of nodes, and say what goes where.
    Cert(CertificateArguments),
    /// Show the nodes and the links to them, as one node sees them; as the operator.
    Status {
        #[command(flatten)]
        server: Server,
    },
}

impl Server {
    fn client(&self) -> Result<Client, RunError> {
        Ok(Client::new(&self.url, self.token.clone(), roots(self.ca.as_deref())?))
    }
}

/// Where Debian, and what is made from it, keeps the certificates it trusts.
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

fn roots(file: Option<&Path>) -> Result<RootCertStore, RunError> {
    let path = file.unwrap_or(Path::new(SYSTEM_CA));
    let mut roots = RootCertStore::empty();
    if file.is_none() && !path.exists() {
        return Ok(roots);
    }
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    roots.add_parsable_certificates(certificates);
    Ok(roots)
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(execute(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

#[allow(clippy::print_stderr, reason = "this is where the program says why it ends")]
fn fail(error: &RunError) -> ExitCode {
    eprintln!("muster: {error}");
    ExitCode::FAILURE
}

async fn execute(command: Command) -> Result<(), RunError> {
    match command {
        Command::Serve(arguments) => Box::pin(serve(arguments.load()?)).await,
        Command::Demo(arguments) => Box::pin(demo::run(arguments)).await,
        Command::Config(arguments) => {
            print(&toml::to_string_pretty(&arguments.load()?)?);
            Ok(())
        }
        Command::Docs { root } => write_documents(&root),
        Command::Ready { server } => show(&server, Method::GET, "/ready", None).await,
        Command::User(command) => user(command).await,
        Command::Token(command) => token(command).await,
        Command::Agent(command) => agent(command).await,
        Command::Agreement(AgreementCommand::Verify { file, server_key }) => {
            print(&agreement::verify(&file, server_key.as_deref())?);
            Ok(())
        }
        Command::Cluster(ClusterCommand::Cert(arguments)) => {
            print(&certificates::make(&arguments, system_clock::environment().now())?);
            Ok(())
        }
        Command::Cluster(ClusterCommand::Status { server }) => {
            show(&server, Method::GET, "/api/v1/admin/cluster", None).await
        }
    }
}

/// Prints the answer of a command.
fn print(text: &str) {
    // Whoever reads may have read enough (`muster config | head`).
    let _gone = writeln!(std::io::stdout(), "{}", text.trim_end());
}

async fn serve(config: Config) -> Result<(), RunError> {
    logging::start(&config.log)?;
    raise_descriptors(config.limits.connections_max);
    let node = Box::pin(run::start(config, config::operator_token())).await?;
    if let Some(token) = &node.new_operator_token {
        print(&format!("operator token, shown this once: {}", token.reveal()));
    }
    tokio::select! {
        () = node.failed() => Err("the node's actors cannot be kept running".into()),
        () = asked_to_stop() => {
            tokio::select! {
                () = node.drain() => Ok(()),
                () = asked_to_stop() => Err("told to stop twice: ended at once".into()),
            }
        }
    }
}

/// Raises the limit of open files as far as it may go, and says so when that is not enough.
fn raise_descriptors(connections_max: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if setrlimit(Resource::Nofile, raised).is_err() {
        tracing::warn!("the limit of open files stays as it is");
    }
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if most < connections_max as u64 {
        tracing::warn!(open_files_max = most, connections_max, "fewer files may be open than connections");
    }
}

/// Waits for SIGTERM or SIGINT.
pub(crate) async fn asked_to_stop() {
    let interrupted = tokio::signal::ctrl_c();
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(mut terminated) => {
            tokio::select! {
                _ = interrupted => {}
                _ = terminated.recv() => {}
            }
        }
        Err(error) => {
            tracing::warn!(%error, "SIGTERM is not handled");
            let _interrupted = interrupted.await;
        }
    }
}

fn write_documents(root: &Path) -> Result<(), RunError> {
    for (path, text) in documents::all() {
        let path = root.join(path);
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

async fn show(server: &Server, method: Method, path: &str, body: Option<Value>) -> Result<(), RunError> {
    let data = server.client()?.send(method, path, body.as_ref()).await?;
    print(&serde_json::to_string_pretty(&data)?);
    Ok(())
}

async fn user(command: UserCommand) -> Result<(), RunError> {
    match command {
        UserCommand::Create { name, server } => {
            show(&server, Method::POST, "/api/v1/admin/users", Some(json!({ "name": name }))).await
        }
        UserCommand::List { server } => {
            show(&server, Method::GET, "/api/v1/admin/users?limit=100", None).await
        }
    }
}

async fn token(command: TokenCommand) -> Result<(), RunError> {
    match command {
        TokenCommand::Create { user, label, scope, expires_at, server } => {
            // None on the command line is every one.
            let scopes = Some(scope).filter(|scopes| !scopes.is_empty());
            let body = json!({ "label": label, "scopes": scopes, "expires_at": expires_at });
            show(&server, Method::POST, &format!("/api/v1/admin/users/{user}/tokens"), Some(body)).await
        }
        TokenCommand::List { user, server } => {
            show(&server, Method::GET, &format!("/api/v1/admin/users/{user}/tokens"), None).await
        }
        TokenCommand::Revoke { user, token_id, server } => {
            show(&server, Method::DELETE, &format!("/api/v1/admin/users/{user}/tokens/{token_id}"), None)
                .await
        }
    }
}

async fn agent(command: AgentCommand) -> Result<(), RunError> {
    match command {
        AgentCommand::Register {
            name,
            did,
            capability,
            pricing_model,
            base_price,
            public_key,
            owned,
            server,
        } => {
            let body = json!({ "agent": {
                "name": name,
                "did": did,
                "capabilities": capability,
                "pricing_model": pricing_model,
                "base_price": base_price,
                "public_key": public_key,
            }});
            let path = if owned { "/api/v1/agents" } else { "/api/v1/agents/register" };
            show(&server, Method::POST, path, Some(body)).await
        }
        AgentCommand::List { server } => show(&server, Method::GET, "/api/v1/agents?limit=100", None).await,
        AgentCommand::Status { agent, status, server } => {
            let path = format!("/api/v1/admin/agents/{agent}/status");
            show(&server, Method::PUT, &path, Some(json!({ "status": status }))).await
        }
    }
}
