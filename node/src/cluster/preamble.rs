//! What two nodes say to each other on a new connection, before anything else: who they are, whether they go together,
//! and whether this connection is to be their link.
//!
//! ```text
//! dials                     accepts
//!   magic · Hello  ───────►
//!                  ◄─────── magic · Hello, or Refused
//!   Agreed, or Refused ───►
//! then the node of the smaller name decides:
//!                            Stand: this is the link
//!                            Ask: do you still hold that one?  ◄─► Held
//!                            Refused: there is a link
//! ```
//!
//! Each word is a length (2 bytes, big endian) and MessagePack with field names. Everything is bounded in length, and all of
//! it together in time.

use std::io;
use std::sync::Arc;

use muster_protocol::cluster::NodeKey;
use muster_protocol::cluster::frame::{PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, is_name};
use muster_protocol::cluster::membership::Refusal;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fabric::Connection;
use super::nodes::Nodes;
use super::stream::Io;
use super::tls;

/// The first bytes of a connection between nodes, so that whatever else connects is told apart at once.
const MAGIC: [u8; 8] = *b"muster-l";
/// Bytes of one word.
const WORD_BYTES_MAX: usize = 1_024;
/// Characters of another's reason that are shown.
const REASON_CHARS_MAX: usize = 300;

/// One of the things said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Word {
    Hello {
        version: u16,
        version_min: u16,
        cluster: SmolStr,
        node: SmolStr,
        incarnation: u64,
        connection: u64,
    },
    Refused {
        reason: String,
        #[serde(default)]
        is_linked: bool,
    },
    Agreed,
    Stand,
    Ask {
        connection: u64,
    },
    Held {
        held: bool,
    },
}

/// Why a connection does not become the link.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It broke.
    #[error("{0}")]
    Broken(#[from] io::Error),
    /// The other end does not speak this.
    #[error("the other end says something that is not understood")]
    Malformed,
    /// This node refused.
    #[error("{0}")]
    Refused(String),
    /// The other node refused.
    #[error("refused by the other node: {0}")]
    RefusedByPeer(String),
    /// The way leads back to this process.
    #[error("this is the same process")]
    Oneself,
    /// There is a link to that node.
    #[error("linked to {0} already")]
    Linked(NodeKey),
}

/// Agrees with the other end of a connection. What comes out stands as the link in [`Nodes::slots`] already.
pub async fn agree(
    nodes: &Nodes,
    io: &mut Io,
    certificate: Option<&CertificateDer<'_>>,
    is_dialled: bool,
) -> Result<Arc<Connection>, Failure> {
    let (key, id) = if is_dialled {
        let id = u64::from_be_bytes(nodes.environment.random()) | 1;
        greet(nodes, io, certificate, id).await?
    } else {
        be_greeted(nodes, io, certificate).await?
    };
    let connection = Connection::new(id, key.clone());
    let candidate = nodes.slots.consider(&connection);
    if nodes.me.name < key.name {
        decide(nodes, io, &connection).await?;
    } else {
        be_decided(nodes, io, &connection).await?;
    }
    candidate.agreed();
    Ok(connection)
}

async fn greet(
    nodes: &Nodes,
    io: &mut Io,
    certificate: Option<&CertificateDer<'_>>,
    id: u64,
) -> Result<(NodeKey, u64), Failure> {
    io.write_all(&MAGIC).await?;
    say(io, &hello(nodes, id)).await?;
    hear_magic(io).await?;
    let theirs = hear(io).await?;
    match check(nodes, &theirs, certificate) {
        Ok((key, connection)) if connection == id => {
            say(io, &Word::Agreed).await?;
            Ok((key, id))
        }
        Ok(_) => Err(Failure::Malformed),
        Err(failure) => Err(refuse(io, failure).await),
    }
}

async fn be_greeted(
    nodes: &Nodes,
    io: &mut Io,
    certificate: Option<&CertificateDer<'_>>,
) -> Result<(NodeKey, u64), Failure> {
    hear_magic(io).await?;
    let theirs = hear(io).await?;
    io.write_all(&MAGIC).await?;
    let (key, id) = match check(nodes, &theirs, certificate) {
        // Even ones count the connections of what carries frames beside the link.
        Ok((_, id)) if id.is_multiple_of(2) => return Err(Failure::Malformed),
        Ok(theirs) => theirs,
        Err(Failure::Oneself) => {
            // The dialling end finds out for itself.
            say(io, &hello(nodes, 0)).await?;
            return Err(Failure::Oneself);
        }
        Err(failure) => return Err(refuse(io, failure).await),
    };
    say(io, &hello(nodes, id)).await?;
    match hear(io).await? {
        Word::Agreed => Ok((key, id)),
        Word::Refused { reason, .. } => Err(by_peer(&reason)),
        _ => Err(Failure::Malformed),
    }
}

/// The node of the smaller name.
async fn decide(nodes: &Nodes, io: &mut Io, connection: &Arc<Connection>) -> Result<(), Failure> {
    let slots = &nodes.slots;
    if let Err(current) = slots.stand(connection) {
        if current.peer == connection.peer && !current.cut.is_cancelled() {
            say(io, &Word::Ask { connection: current.id }).await?;
            match hear(io).await? {
                Word::Held { held: true } => return Err(refuse_linked(io, &connection.peer).await),
                Word::Held { held: false } => {}
                _ => return Err(Failure::Malformed),
            }
        }
        if !slots.replace(connection).await {
            return Err(refuse_linked(io, &connection.peer).await);
        }
    }
    say(io, &Word::Stand).await
}

/// The other one.
async fn be_decided(nodes: &Nodes, io: &mut Io, connection: &Arc<Connection>) -> Result<(), Failure> {
    loop {
        match hear(io).await? {
            Word::Ask { connection: id } => {
                let held = nodes.slots.holds(&connection.peer.name, id);
                say(io, &Word::Held { held }).await?;
            }
            Word::Stand if nodes.slots.replace(connection).await => return Ok(()),
            Word::Stand | Word::Refused { is_linked: true, .. } => {
                return Err(Failure::Linked(connection.peer.clone()));
            }
            Word::Refused { reason, .. } => return Err(by_peer(&reason)),
            _ => return Err(Failure::Malformed),
        }
    }
}

fn hello(nodes: &Nodes, connection: u64) -> Word {
    Word::Hello {
        version: PROTOCOL_VERSION,
        version_min: PROTOCOL_VERSION_MIN,
        cluster: nodes.cluster.clone(),
        node: nodes.me.name.clone(),
        incarnation: nodes.me.incarnation,
        connection,
    }
}

/// Who the other end is, if it may link.
fn check(
    nodes: &Nodes,
    word: &Word,
    certificate: Option<&CertificateDer<'_>>,
) -> Result<(NodeKey, u64), Failure> {
    let (version, version_min, cluster, node, incarnation, connection) = match word {
        Word::Hello { version, version_min, cluster, node, incarnation, connection } => {
            (*version, *version_min, cluster, node, *incarnation, *connection)
        }
        Word::Refused { reason, .. } => return Err(by_peer(reason)),
        _ => return Err(Failure::Malformed),
    };
    if !is_name(cluster) || !is_name(node) {
        return Err(Failure::Malformed);
    }
    let key = NodeKey { name: node.clone(), incarnation };
    if *cluster != nodes.cluster {
        let ours = &nodes.cluster;
        return Err(Failure::Refused(format!("{key} is of cluster {cluster}, {} of {ours}", nodes.me)));
    }
    if version < PROTOCOL_VERSION_MIN || version_min > PROTOCOL_VERSION {
        return Err(Failure::Refused(format!(
            "{key} speaks versions {version_min} to {version}, {} {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}: go by one \
             version at a time",
            nodes.me
        )));
    }
    if certificate.is_some_and(|certificate| !tls::stands_for(certificate, node)) {
        return Err(Failure::Refused(format!("the certificate of {key} is another node's")));
    }
    match nodes.admits(&key) {
        Ok(()) => Ok((key, connection)),
        Err(Refusal::Oneself) => Err(Failure::Oneself),
        Err(refusal) => Err(Failure::Refused(refusal.to_string())),
    }
}

/// Tells the other end why not, if this one refuses.
async fn refuse(io: &mut Io, failure: Failure) -> Failure {
    if let Failure::Refused(reason) = &failure {
        // It may be gone; the reason is logged here in any case.
        let _told = say(io, &Word::Refused { reason: reason.clone(), is_linked: false }).await;
    }
    failure
}

async fn refuse_linked(io: &mut Io, peer: &NodeKey) -> Failure {
    let word = Word::Refused { reason: "there is a link".to_owned(), is_linked: true };
    let _told = say(io, &word).await;
    Failure::Linked(peer.clone())
}

fn by_peer(reason: &str) -> Failure {
    let shown = reason.chars().filter(|char| !char.is_control()).take(REASON_CHARS_MAX).collect();
    Failure::RefusedByPeer(shown)
}

async fn say(io: &mut Io, word: &Word) -> Result<(), Failure> {
    let bytes = rmp_serde::to_vec_named(word).map_err(io::Error::other)?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut message = length.to_be_bytes().to_vec();
    message.extend(bytes);
    io.write_all(&message).await?;
    io.flush().await?;
    Ok(())
}

async fn hear_magic(io: &mut Io) -> Result<(), Failure> {
    let mut magic = [0; MAGIC.len()];
    io.read_exact(&mut magic).await?;
    if magic == MAGIC { Ok(()) } else { Err(Failure::Malformed) }
}

/// Reads one word and no byte more: what follows is ractor_cluster's.
async fn hear(io: &mut Io) -> Result<Word, Failure> {
    let length = usize::from(io.read_u16().await?);
    if length > WORD_BYTES_MAX {
        return Err(Failure::Malformed);
    }
    let mut bytes = vec![0; length];
    io.read_exact(&mut bytes).await?;
    rmp_serde::from_slice(&bytes).map_err(|_| Failure::Malformed)
}
