//! What members may do, how votes end, and what nobody may.

use super::*;
use serde_json::{Value, json};

fn agent(n: u8) -> AgentId {
    AgentId::new(at(0), [n; 10])
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(1_000_000 + ms)
}

fn vote_id(n: u8) -> VoteId {
    VoteId::new(at(0), [n; 10])
}

struct World {
    team: Team,
    limits: Limits,
    entries: Vec<Entry>,
    told: Vec<(Told, Value)>,
    count: u8,
}

impl World {
    /// Agent 1 has made a team with 2 and 3.
    fn new() -> Self {
        let limits = Limits { team_members_max: 4, team_open_votes_max: 2, ..Limits::default() };
        let id = TeamId::new(at(0), [9; 10]);
        let team = Team::new(
            (id, "Crew".into()),
            agent(1),
            &[agent(2), agent(3), agent(2), agent(1)],
            at(0),
            &limits,
        );
        Self { team: team.unwrap(), limits, entries: Vec::new(), told: Vec::new(), count: 0 }
    }

    fn ask(&mut self, command: &Command, now: Timestamp) -> Result<Value, ErrorCode> {
        let (change, answer) = self.team.decide(command, now, &self.limits);
        if let Some(change) = change {
            assert_eq!(change.team.version, self.team.version + 1);
            self.team = change.team;
            self.entries.extend(change.entries);
            self.told.extend(change.told.into_iter().map(|(told, body)| (told, body.parse().unwrap())));
        }
        answer.map(|answer| answer.parse().unwrap()).map_err(|refusal| refusal.code)
    }

    fn act(&mut self, by: u8, action: Action, now: Timestamp) -> Result<Value, ErrorCode> {
        self.count += 1;
        let entry = EntryId::new(at(0), [self.count; 10]);
        self.ask(&Command::Act { by: agent(by), entry, action }, now)
    }

    fn open_vote(&mut self, by: u8, n: u8, period_s: Option<u32>) -> Result<Value, ErrorCode> {
        let options = vec!["yes".into(), "no".into(), "later".into()];
        let request = VoteRequest { question: "Ship it?".into(), options, period_s };
        self.act(by, Action::OpenVote(vote_id(n), request), at(0))
    }

    fn cast(&mut self, by: u8, n: u8, choice: &str, ms: i64) -> Result<Value, ErrorCode> {
        self.act(by, Action::Cast(vote_id(n), Choice::Words(choice.into())), at(ms))
    }
}

#[test]
fn what_is_kept_sorts_in_the_order_in_which_it_came() {
    let mut world = World::new();
    world.open_vote(1, 1, Some(60)).unwrap();
    // The ids that are wanted get smaller: the members' nodes do not have one clock.
    for (nth, wanted) in [200, 100, 50].into_iter().enumerate() {
        world.count = wanted;
        world.act(2, Action::Say(Json::of(&nth)), at(0)).unwrap();
    }
    world.ask(&Command::Due, at(60_000)).unwrap();
    assert_eq!(world.entries.len(), 4);
    assert!(world.entries.is_sorted_by(|a, b| a.id < b.id), "{:?}", world.entries);
}

#[test]
fn the_owner_says_who_belongs_to_it() {
    let mut world = World::new();
    assert_eq!(world.team.members, [agent(1), agent(2), agent(3)]);
    let add = |by, n| Command::Add { by: agent(by), agent: agent(n) };
    let remove = |by, n| Command::Remove { by: agent(by), agent: agent(n) };
    assert_eq!(world.ask(&add(2, 4), at(1)), Err(ErrorCode::Forbidden));
    assert!(world.ask(&add(1, 4), at(1)).is_ok());
    assert!(world.ask(&add(1, 4), at(1)).is_ok(), "twice is once");
    assert_eq!(world.ask(&add(1, 5), at(1)), Err(ErrorCode::LimitReached));
    assert_eq!(world.ask(&remove(2, 3), at(1)), Err(ErrorCode::Forbidden));
    assert_eq!(world.ask(&remove(1, 1), at(1)), Err(ErrorCode::InvalidPayload));
    assert!(world.ask(&remove(3, 3), at(1)).is_ok(), "anybody may leave");
    assert_eq!(world.ask(&remove(1, 3), at(1)), Err(ErrorCode::NotFound));
    assert_eq!(world.team.members, [agent(1), agent(2), agent(4)]);
    assert_eq!(world.told.len(), 2);
    let limits = Limits { team_members_max: 1, ..Limits::default() };
    let id = TeamId::new(at(0), [9; 10]);
    assert!(Team::new((id, "Crew".into()), agent(1), &[agent(2)], at(0), &limits).is_err());
    assert!(Team::new((id, " ".into()), agent(1), &[], at(0), &limits).is_err());
}

#[test]
fn members_say_things_and_nobody_else_does() {
    let mut world = World::new();
    let said = Action::Say(Json::of(&json!({ "text": "hello" })));
    assert_eq!(world.act(4, said.clone(), at(5)), Err(ErrorCode::Unauthorized));
    let answer = world.act(2, said, at(5)).unwrap();
    assert_eq!(world.told[0].0, Told::Message);
    assert_eq!(world.told[0].1["content"]["text"], "hello");
    assert_eq!(world.told[0].1["from_agent_id"], agent(2).to_string());
    assert_eq!(world.told[0].1["id"], answer["id"]);
    let known = KnowledgeRequest { topic: "api".into(), content: Json::of(&json!("v2")) };
    world.act(3, Action::AddKnowledge(known), at(6)).unwrap();
    let escalation =
        EscalationRequest { reason: "stuck".into(), severity: Severity::Critical, details: None };
    world.act(2, Action::Escalate(escalation), at(7)).unwrap();
    assert_eq!(world.told[2].1["severity"], "critical");
    let kinds: Vec<_> = world.entries.iter().map(|entry| (entry.kind, entry.author)).collect();
    assert_eq!(
        kinds,
        [(EntryKind::Message, agent(2)), (EntryKind::Knowledge, agent(3)), (EntryKind::Escalation, agent(2))]
    );
    let large = Json::of(&"x".repeat(world.limits.team_entry_bytes_max));
    assert_eq!(world.act(2, Action::Say(large), at(8)), Err(ErrorCode::InvalidPayload));
}

#[test]
fn a_vote_counts_one_ballot_of_each_and_ends_in_time() {
    let mut world = World::new();
    let opened = world.open_vote(1, 1, Some(60)).unwrap();
    assert_eq!(opened["closes_at"], json!(at(60_000)));
    world.cast(1, 1, "no", 1).unwrap();
    world.cast(1, 1, "yes", 2).unwrap();
    world.cast(2, 1, "yes", 3).unwrap();
    world.act(3, Action::Cast(vote_id(1), Choice::Place(1)), at(4)).unwrap();
    assert_eq!(world.cast(4, 1, "yes", 5), Err(ErrorCode::Unauthorized));
    assert_eq!(world.cast(3, 1, "maybe", 5), Err(ErrorCode::InvalidPayload));
    assert_eq!(
        world.act(3, Action::Cast(vote_id(1), Choice::Place(3)), at(5)),
        Err(ErrorCode::InvalidPayload)
    );
    assert_eq!(world.cast(3, 2, "yes", 5), Err(ErrorCode::NotFound));
    let casts: Vec<_> = world.told.iter().filter(|(told, _)| *told == Told::VoteCast).collect();
    assert_eq!(casts.len(), 3, "who changes their mind is not told of twice");
    assert!(
        casts.iter().all(|(_, body)| body.get("option").is_none()),
        "what was chosen is nobody's business yet"
    );
    // Who has left has voted all the same.
    world.ask(&Command::Remove { by: agent(1), agent: agent(3) }, at(6)).unwrap();
    assert_eq!(world.ask(&Command::Due, at(59_999)).unwrap(), json!({}));
    assert_eq!(world.team.votes.len(), 1);
    assert_eq!(world.team.due_at(), Some(at(60_000)));
    // Too late, before the sweep has come: it is closed by that.
    assert_eq!(world.cast(2, 1, "no", 60_000), Err(ErrorCode::NotFound));
    let (told, result) = world.told.last().unwrap();
    assert_eq!(*told, Told::VoteClosed);
    assert_eq!(result["winner"], "yes");
    assert_eq!(
        result["tally"],
        json!([{ "option": "yes", "votes": 2 }, { "option": "no", "votes": 1 }, { "option": "later", "votes": 0 }])
    );
    assert_eq!(world.entries.last().unwrap().kind, EntryKind::Vote);
    assert!(world.team.votes.is_empty() && world.team.due_at().is_none());
    let version = world.team.version;
    world.ask(&Command::Due, at(70_000)).unwrap();
    assert_eq!(world.team.version, version, "nothing is closed twice");
}

#[test]
fn a_tie_and_an_empty_vote_have_no_winner() {
    let mut world = World::new();
    world.open_vote(1, 1, None).unwrap();
    world.open_vote(1, 2, None).unwrap();
    assert_eq!(world.open_vote(1, 3, None), Err(ErrorCode::LimitReached));
    world.cast(1, 1, "yes", 1).unwrap();
    world.cast(2, 1, "no", 1).unwrap();
    world.ask(&Command::Due, at(86_400_000)).unwrap();
    let closed: Vec<_> = world.told.iter().filter(|(told, _)| *told == Told::VoteClosed).collect();
    assert_eq!(closed.len(), 2);
    assert!(closed.iter().all(|(_, body)| body["winner"].is_null()));
}

#[test]
fn a_vote_that_makes_no_sense_is_refused() {
    let mut world = World::new();
    for (options, period_s) in [
        (vec!["yes"], None),
        (vec!["yes", "yes"], None),
        (vec!["yes", " "], None),
        (vec!["a"; OPTIONS_MAX + 1], None),
        (vec!["yes", "no"], Some(0)),
        (vec!["yes", "no"], Some(VOTE_PERIOD_S_MAX + 1)),
    ] {
        let options = options.into_iter().map(String::from).collect();
        let request = VoteRequest { question: "Ship it?".into(), options, period_s };
        let refused = world.act(1, Action::OpenVote(vote_id(1), request), at(0));
        assert_eq!(refused, Err(ErrorCode::InvalidPayload));
    }
    assert!(world.team.votes.is_empty() && world.told.is_empty());
}
