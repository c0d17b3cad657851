//! The topics one connection has joined, and what each message means for them (phoenix.md §4.1).

use smol_str::SmolStr;

use super::message::{Inbound, Ref};
use super::{HEARTBEAT_TOPIC, event};

/// Joins of one connection. `H` is whatever the caller needs to reach a join.
#[derive(Debug)]
pub struct Session<H> {
    joins: Vec<Join<H>>,
}

/// One live join.
#[derive(Debug)]
pub struct Join<H> {
    /// Topic.
    pub topic: SmolStr,
    /// As the client gave it: what later messages are compared with.
    pub join_ref: Ref,
    /// How to reach it.
    pub handle: H,
}

/// What a message asks for.
#[derive(Debug)]
pub enum Route<'s, H> {
    /// Answer ok, with a null `join_ref`.
    Heartbeat,
    /// Start a join. If the topic is joined already, that join ends.
    Join,
    /// Refuse the join: the connection has as many as it may.
    TooManyJoins,
    /// Hand to the join.
    Push(&'s H),
    /// Hand to the join, which ends.
    Leave(&'s H),
    /// Answer ok, with both references echoed: the topic is not joined.
    LeaveUnjoined,
    /// Answer "unmatched topic", with a null `join_ref`.
    Unmatched,
    /// Say nothing: the message is of an earlier join.
    Stale,
}

impl<H> Default for Session<H> {
    fn default() -> Self {
        Self { joins: Vec::new() }
    }
}

impl<H> Session<H> {
    /// Decides about one message; changes nothing.
    #[must_use]
    pub fn route(&self, message: &Inbound<'_>, joins_max: usize) -> Route<'_, H> {
        let (Some(topic), Some(event)) = (message.topic.as_deref(), message.event.as_deref()) else {
            return Route::Unmatched;
        };
        if topic == HEARTBEAT_TOPIC && event == event::HEARTBEAT {
            return Route::Heartbeat;
        }
        let joined = self.joins.iter().find(|join| join.topic == topic);
        if event == event::JOIN {
            return match joined {
                None if self.joins.len() >= joins_max => Route::TooManyJoins,
                _ => Route::Join,
            };
        }
        let leaves = event == event::LEAVE;
        match joined {
            None if leaves => Route::LeaveUnjoined,
            None => Route::Unmatched,
            Some(join) if !message.join_ref.is_null() && message.join_ref != join.join_ref => Route::Stale,
            Some(join) if leaves => Route::Leave(&join.handle),
            Some(join) => Route::Push(&join.handle),
        }
    }

    /// Records a join; gives back the one it replaces.
    pub fn insert(&mut self, topic: SmolStr, join_ref: Ref, handle: H) -> Option<Join<H>> {
        let new = Join { topic, join_ref, handle };
        match self.joins.iter_mut().find(|join| join.topic == new.topic) {
            Some(slot) => Some(std::mem::replace(slot, new)),
            None => {
                self.joins.push(new);
                None
            }
        }
    }

    /// Forgets the join that `is` names; `None` if it was replaced or forgotten already.
    pub fn remove(&mut self, is: impl Fn(&H) -> bool) -> Option<Join<H>> {
        let at = self.joins.iter().position(|join| is(&join.handle))?;
        let removed = self.joins.swap_remove(at);
        if self.joins.is_empty() {
            // An idle connection holds no buffer.
            self.joins = Vec::new();
        }
        Some(removed)
    }

    /// Takes all joins out.
    pub fn take_all(&mut self) -> Vec<Join<H>> {
        std::mem::take(&mut self.joins)
    }

    /// The joins.
    pub fn iter(&self) -> impl Iterator<Item = &Join<H>> {
        self.joins.iter()
    }

    /// Topics joined.
    #[must_use]
    pub fn len(&self) -> usize {
        self.joins.len()
    }

    /// Whether none is joined.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.joins.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Version, decode};
    use super::*;
    use crate::limits::Limits;

    fn route(session: &Session<u32>, message: &str) -> String {
        let limits = Limits::default();
        let inbound = decode::text(Version::V2, message, &limits).unwrap();
        format!("{:?}", session.route(&inbound, 2))
    }

    #[test]
    fn every_row_of_the_table() {
        let mut session = Session::default();
        assert_eq!(route(&session, r#"[null,"1","phoenix","heartbeat",{}]"#), "Heartbeat");
        assert_eq!(route(&session, r#"["1","1","phoenix","other",{}]"#), "Unmatched");
        assert_eq!(route(&session, r#"["1","1","a","phx_join",{}]"#), "Join");
        assert_eq!(route(&session, r#"["1","1","a","phx_leave",{}]"#), "LeaveUnjoined");
        assert_eq!(route(&session, r#"["1","1","a","ev",{}]"#), "Unmatched");
        assert_eq!(route(&session, r#"["1","1",null,"phx_join",{}]"#), "Unmatched");
        assert_eq!(route(&session, r#"["1","1","a",null,{}]"#), "Unmatched");

        assert!(session.insert("a".into(), Ref::from_text("1"), 10).is_none());
        assert_eq!(route(&session, r#"["1","2","a","ev",{}]"#), "Push(10)");
        assert_eq!(route(&session, r#"[null,"2","a","ev",{}]"#), "Push(10)");
        assert_eq!(route(&session, r#"[1,"2","a","ev",{}]"#), "Stale");
        assert_eq!(route(&session, r#"["0","2","a","ev",{}]"#), "Stale");
        assert_eq!(route(&session, r#"["0","2","a","phx_leave",{}]"#), "Stale");
        assert_eq!(route(&session, r#"["1","2","a","phx_leave",{}]"#), "Leave(10)");
        for reserved in ["phx_reply", "phx_close", "phx_error"] {
            assert_eq!(route(&session, &format!(r#"["1","2","a","{reserved}",{{}}]"#)), "Push(10)");
        }

        assert!(session.insert("b".into(), Ref::from_text("3"), 11).is_none());
        assert_eq!(route(&session, r#"["4","4","c","phx_join",{}]"#), "TooManyJoins");
        assert_eq!(route(&session, r#"["4","4","b","phx_join",{}]"#), "Join");
        let replaced = session.insert("b".into(), Ref::from_text("4"), 12).unwrap();
        assert_eq!((replaced.handle, replaced.join_ref.as_json()), (11, "\"3\""));
        assert_eq!(route(&session, r#"["3","5","b","ev",{}]"#), "Stale");
        assert!(session.remove(|handle| *handle == 11).is_none());
        assert_eq!(session.remove(|handle| *handle == 12).unwrap().topic, "b");
        assert_eq!(session.take_all().len(), 1);
        assert!(session.is_empty());
    }

    #[test]
    fn a_join_with_a_null_ref_is_only_reached_by_null() {
        let mut session = Session::default();
        session.insert("a".into(), Ref::NULL, 1);
        assert_eq!(route(&session, r#"[null,"2","a","ev",{}]"#), "Push(1)");
        assert_eq!(route(&session, r#"["1","2","a","ev",{}]"#), "Stale");
    }
}
