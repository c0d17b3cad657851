//! What a member of `agents:discovery` has been told of the others: counted by scanning, for in a large crowd each is told
//! as much as all know; kept whole for a few, to be checked against the truth.

use std::collections::{BTreeMap, BTreeSet};

use memchr::memmem;
use serde_json::Value;

use super::wire::{Counts, FrameReader};

/// Each meta has one.
const META: &[u8] = b"\"phx_ref\":";
/// What is before it in a diff has come, what is behind it has gone.
const LEAVES: &[u8] = b"\"leaves\":{";
/// Bytes that say what a frame is.
const HEAD_BYTES: usize = 96;
/// Bytes that the beginning of a pattern can take.
const CARRY_BYTES: usize = 9;

/// What one member has been told.
#[derive(Default)]
pub struct Roster {
    frames: FrameReader,
    /// First bytes of the frame under way.
    head: Vec<u8>,
    /// Last bytes of it that have come.
    carry: Vec<u8>,
    has_leaves: bool,
    came: usize,
    went: usize,
    /// Members it knows to be there.
    pub known: usize,
    /// Entries it was told in all, comings and goings.
    pub told: u64,
    /// States it was sent: more than one when it was too slow for the diffs.
    pub states: u64,
    /// Joins that were answered.
    pub joined: u64,
    /// Everything it was told, if it is one of those that are checked.
    kept: Option<Vec<Vec<u8>>>,
}

impl Roster {
    /// One that keeps what it is told.
    pub fn checked() -> Self {
        Self { kept: Some(vec![Vec::new()]), ..Self::default() }
    }

    fn part(&mut self, part: &[u8]) {
        let missing = HEAD_BYTES.saturating_sub(self.head.len()).min(part.len());
        self.head.extend_from_slice(&part[..missing]);
        if let Some(frame) = self.kept.as_mut().and_then(|frames| frames.last_mut()) {
            frame.extend_from_slice(part);
        }
        // Patterns that were cut: they begin in what was carried over and end in what has come.
        let carried = self.carry.len();
        if carried > 0 {
            let mut seam = std::mem::take(&mut self.carry);
            seam.extend_from_slice(&part[..part.len().min(CARRY_BYTES)]);
            let crosses = |pattern: &[u8]| {
                memmem::find_iter(&seam, pattern).any(|at| at < carried && at + pattern.len() > carried)
            };
            if crosses(LEAVES) {
                self.has_leaves = true;
            }
            if crosses(META) {
                *(if self.has_leaves { &mut self.went } else { &mut self.came }) += 1;
            }
            self.carry = seam;
        }
        let count = |bytes: &[u8]| memmem::find_iter(bytes, META).count();
        match memmem::find(part, LEAVES) {
            Some(at) if !self.has_leaves => {
                self.has_leaves = true;
                self.came += count(&part[..at]);
                self.went += count(&part[at..]);
            }
            _ if self.has_leaves => self.went += count(part),
            _ => self.came += count(part),
        }
        if part.len() >= CARRY_BYTES {
            self.carry.clear();
            self.carry.extend_from_slice(&part[part.len() - CARRY_BYTES..]);
        } else {
            let excess = self.carry.len().saturating_sub(CARRY_BYTES);
            if carried == 0 {
                self.carry.extend_from_slice(part);
            } else {
                self.carry.drain(..excess);
            }
        }
    }

    fn end_frame(&mut self) {
        let says = |what: &[u8]| memmem::find(&self.head, what).is_some();
        if says(b"\"presence_state\"") {
            self.known = self.came;
            self.states += 1;
        } else if says(b"\"presence_diff\"") {
            self.known = (self.known + self.came).checked_sub(self.went).expect("more leave than were there");
        } else {
            assert!(says(b"\"status\":\"ok\""), "{}", String::from_utf8_lossy(&self.head));
            self.joined += 1;
        }
        self.told += (self.came + self.went) as u64;
        (self.came, self.went, self.has_leaves) = (0, 0, false);
        self.head.clear();
        self.carry.clear();
        if let Some(frames) = &mut self.kept {
            frames.push(Vec::new());
        }
    }

    /// Compares what it was told, if that was kept, with who is there; whether it was.
    pub fn check(&self, there: &BTreeSet<&str>) -> bool {
        let Some(frames) = &self.kept else { return false };
        let mut present: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for frame in frames.iter().filter(|frame| !frame.is_empty()) {
            let message: Value = serde_json::from_slice(frame).unwrap();
            let payload = &message[4];
            match message[3].as_str().unwrap() {
                "presence_state" => {
                    present.clear();
                    for (key, reference) in metas(payload) {
                        assert!(present.entry(key).or_default().insert(reference), "one twice in a state");
                    }
                }
                "presence_diff" => {
                    for (key, reference) in metas(&payload["joins"]) {
                        assert!(present.entry(key).or_default().insert(reference), "told of one twice");
                    }
                    for (key, reference) in metas(&payload["leaves"]) {
                        let left = present.get_mut(&key).expect("a leave of one that was not there");
                        assert!(left.remove(&reference), "a leave of one that was not there");
                        if left.is_empty() {
                            present.remove(&key);
                        }
                    }
                }
                _ => {}
            }
        }
        assert!(present.values().all(|references| references.len() == 1), "more metas than sockets");
        let known: BTreeSet<&str> = present.keys().map(String::as_str).collect();
        assert!(known == *there, "{} known, {} there", known.len(), there.len());
        assert_eq!(self.known, known.len(), "counted and read");
        true
    }
}

/// Key and reference of each meta.
fn metas(entries: &Value) -> impl Iterator<Item = (String, String)> {
    entries.as_object().unwrap().iter().flat_map(|(key, entry)| {
        let metas = entry["metas"].as_array().unwrap().iter();
        metas.map(|meta| (key.clone(), meta["phx_ref"].as_str().unwrap().to_owned()))
    })
}

impl Counts for Roster {
    fn feed(&mut self, bytes: &[u8]) -> u64 {
        let mut frames = std::mem::take(&mut self.frames);
        let mut whole = 0;
        frames.feed(bytes, |part, ends| {
            self.part(part);
            if ends {
                self.end_frame();
                whole += 1;
            }
        });
        self.frames = frames;
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_frame(text: &str) -> Vec<u8> {
        let mut frame = vec![0x81, 126];
        frame.extend_from_slice(&u16::try_from(text.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(text.as_bytes());
        frame
    }

    /// However the bytes are cut, the counts are the same, and what is kept agrees with them.
    #[test]
    fn counting_does_not_depend_on_how_bytes_are_cut() {
        let metas = |names: &[&str]| {
            let entries: Vec<String> = names
                .iter()
                .map(|name| format!(r#""{name}":{{"metas":[{{"phx_ref":"r{name}","phx_ref_prev":"x"}}]}}"#))
                .collect();
            format!("{{{}}}", entries.join(","))
        };
        let topic = r#"["1",null,"agents:discovery""#;
        let bytes = [
            r#"["1","1","agents:discovery","phx_reply",{"response":{},"status":"ok"}]"#.to_owned(),
            format!(r#"{topic},"presence_state",{}]"#, metas(&["a", "b"])),
            format!(r#"{topic},"presence_diff",{{"joins":{},"leaves":{{}}}}]"#, metas(&["c", "d"])),
            format!(
                r#"{topic},"presence_diff",{{"joins":{},"leaves":{}}}]"#,
                metas(&["e"]),
                metas(&["a", "d"])
            ),
        ]
        .iter()
        .flat_map(|text| server_frame(text))
        .collect::<Vec<u8>>();
        for size in 1..bytes.len() {
            let mut roster = Roster::checked();
            let frames: u64 = bytes.chunks(size).map(|part| roster.feed(part)).sum();
            let counted = (frames, roster.known, roster.told, roster.states, roster.joined);
            assert_eq!(counted, (4, 3, 7, 1, 1), "cut into {size}");
            assert!(roster.check(&BTreeSet::from(["b", "c", "e"])));
        }
    }
}
