//! What clients bring by POST: messages that are handed to the socket one after another, as fast as it takes them.

use muster_protocol::phoenix::decode;
use muster_protocol::phoenix::longpoll::{BodyForm, Posted, PostedMessages, Status};
use muster_protocol::websocket::CloseCode;

use super::Session;

/// Messages of one POST before other connections have their turn.
const MESSAGES_PER_TURN: usize = 64;

/// What became of a POST: one of `Ok`, `NotTaken` and `Gone`.
pub type Taken = Status;

impl Session {
    /// Waits for those that post before, one window long at most; no: the session has ended, as they took too long.
    pub async fn turn(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let turn = tokio::time::timeout(self.window, self.posting.lock()).await;
        if turn.is_err() {
            self.not_taken();
        }
        turn.ok()
    }

    fn not_taken(&self) {
        self.socket.close(CloseCode::Overloaded, "messages were not taken in time");
    }

    /// Hands the messages of a body to the socket. Each waits until there are few enough in work and the client has
    /// taken enough of what it is owed; so a flood waits, and does not grow.
    ///
    /// A POST that is not taken whole within the window ends the session, because its client cannot know how much was;
    /// so does one that holds what is no message, as on a WebSocket.
    pub async fn post(&self, form: BodyForm, body: &[u8]) -> Taken {
        if self.socket.sink().is_closed() {
            return Status::Gone;
        }
        self.socket.heard();
        let taken = tokio::time::timeout(self.window, self.hand_over(form, body)).await;
        taken.unwrap_or_else(|_elapsed| {
            self.not_taken();
            Status::NotTaken
        })
    }

    async fn hand_over(&self, form: BodyForm, body: &[u8]) -> Taken {
        let limits = self.socket.core.limits.clone();
        let version = self.socket.version();
        let messages = PostedMessages::new(form, body, limits.message_bytes_max);
        for (number, posted) in messages.enumerate() {
            if number % MESSAGES_PER_TURN == MESSAGES_PER_TURN - 1 {
                tokio::task::yield_now().await;
            }
            if !self.may_hand_over().await {
                return if number == 0 { Status::Gone } else { Status::NotTaken };
            }
            let binary;
            let message = match posted {
                Ok(Posted::Text(text)) => decode::text(version, text, &limits),
                Ok(Posted::Binary(bytes)) => {
                    binary = bytes;
                    decode::binary(version, &binary, &limits)
                }
                Err(error) => {
                    self.socket.close(error.code, error.reason);
                    return Status::NotTaken;
                }
            };
            match message {
                Ok(message) => self.socket.receive(&message),
                Err(undecodable) => {
                    self.socket.close(CloseCode::Undecodable, undecodable.0);
                    return Status::NotTaken;
                }
            }
        }
        Status::Ok
    }

    /// Waits until one more message may be handed over; no, when the socket has closed.
    async fn may_hand_over(&self) -> bool {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.socket.sink().is_closed() {
                return false;
            }
            if self.socket.may_read() {
                return true;
            }
            changed.await;
        }
    }
}
