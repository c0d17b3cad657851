//! A vote as it is shown, while it is open and once it is closed.

use serde::Serialize;

use super::Vote;
use crate::ids::{AgentId, VoteId};
use crate::time::Timestamp;

#[derive(Serialize)]
pub(super) struct VoteView<'a> {
    vote_id: VoteId,
    question: &'a str,
    options: &'a [String],
    opened_by: AgentId,
    opened_at: Timestamp,
    closes_at: Timestamp,
    ballots: usize,
}

#[derive(Serialize)]
pub(super) struct VoteResult<'a> {
    #[serde(flatten)]
    vote: VoteView<'a>,
    tally: Vec<Tallied<'a>>,
    /// The option with most, if no other has as many.
    winner: Option<&'a str>,
}

#[derive(Serialize)]
struct Tallied<'a> {
    option: &'a str,
    votes: usize,
}

impl Vote {
    pub(super) fn view(&self) -> VoteView<'_> {
        VoteView {
            vote_id: self.id,
            question: &self.question,
            options: &self.options,
            opened_by: self.opened_by,
            opened_at: self.opened_at,
            closes_at: self.closes_at,
            ballots: self.ballots.len(),
        }
    }

    pub(super) fn result(&self) -> VoteResult<'_> {
        let count = |place| self.ballots.iter().filter(|(_, chosen)| *chosen == place).count();
        let tally: Vec<Tallied<'_>> = self
            .options
            .iter()
            .enumerate()
            .map(|(place, option)| Tallied { option, votes: count(place) })
            .collect();
        let most = tally.iter().map(|option| option.votes).max().unwrap_or(0);
        let mut best = tally.iter().filter(|option| option.votes == most && most > 0);
        let winner = match (best.next(), best.next()) {
            (Some(option), None) => Some(option.option),
            _ => None,
        };
        VoteResult { vote: self.view(), tally, winner }
    }
}
