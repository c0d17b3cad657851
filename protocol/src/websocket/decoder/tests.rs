//! Table and property tests of the frame decoder.

use proptest::prelude::*;

use super::*;

const LIMITS: DecoderLimits = DecoderLimits { message_bytes_max: 1_000, fragments_max: 4 };

fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..126 => frame.push(0x80 | u8::try_from(short).unwrap()),
        medium @ 126..65_536 => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&u16::try_from(medium).unwrap().to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Decodes everything, as one message log; stops at the first error.
fn run(bytes: &mut [u8], limits: DecoderLimits) -> (Vec<String>, Option<ProtocolError>) {
    let mut decoder = Decoder::default();
    let mut log = Vec::new();
    let mut at = 0;
    loop {
        let entry = match decoder.decode(&mut bytes[at..], limits) {
            Err(error) => return (log, Some(error)),
            Ok(Decoded::Incomplete { .. }) => return (log, None),
            Ok(Decoded::Close { code }) => {
                log.push(format!("close {code:?}"));
                return (log, None);
            }
            Ok(Decoded::Fragment { consumed }) => (consumed, "fragment".to_owned()),
            Ok(Decoded::Text { consumed, text }) => (consumed, format!("text {text}")),
            Ok(Decoded::Binary { consumed, data }) => (consumed, format!("binary {data:?}")),
            Ok(Decoded::Ping { consumed, payload }) => (consumed, format!("ping {payload:?}")),
            Ok(Decoded::Pong { consumed }) => (consumed, "pong".to_owned()),
        };
        at += entry.0;
        log.push(entry.1);
    }
}

fn error_of(frames: &[Vec<u8>]) -> (u16, &'static str) {
    let (_, error) = run(&mut frames.concat(), LIMITS);
    let error = error.expect("an error");
    (error.code.number(), error.reason)
}

#[test]
fn messages_fragments_and_control_frames_in_between() {
    let mut bytes = [
        client_frame(0x81, "héllo".as_bytes()),
        client_frame(0x01, &"é".as_bytes()[..1]),
        client_frame(0x89, b"p"),
        client_frame(0x80, &"é".as_bytes()[1..]),
        client_frame(0x82, &[1, 2]),
        client_frame(0x8A, b""),
        client_frame(0x88, &[0x03, 0xE9]),
        client_frame(0x81, b"never read"),
    ]
    .concat();
    let (log, error) = run(&mut bytes, LIMITS);
    assert_eq!(error, None);
    assert_eq!(
        log,
        ["text héllo", "fragment", "ping [112]", "text é", "binary [1, 2]", "pong", "close Some(1001)"]
    );
}

#[test]
fn every_breach_has_its_close_code() {
    let unmasked = vec![0x81, 0x01, b'a'];
    let huge = vec![0x81, 0xFF, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3, 4];
    let negative = vec![0x81, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
    let long_form = vec![0x81, 0xFE, 0, 5, 1, 2, 3, 4];
    for (frames, code, reason) in [
        (vec![unmasked], 1002, "client frame without a mask"),
        (vec![client_frame(0xC1, b"a")], 1002, "reserved bits are set"),
        (vec![client_frame(0x83, b"a")], 1002, "unknown opcode"),
        (vec![client_frame(0x80, b"a")], 1002, "continuation of nothing"),
        (
            vec![client_frame(0x01, b"a"), client_frame(0x81, b"b")],
            1002,
            "new message inside a fragmented one",
        ),
        (
            vec![client_frame(0x01, b"a"), client_frame(0x01, b"b")],
            1002,
            "new message inside a fragmented one",
        ),
        (vec![client_frame(0x09, b"a")], 1002, "fragmented control frame"),
        (vec![client_frame(0x8A, &[0; 126])], 1002, "control frame over 125 bytes"),
        (vec![client_frame(0x88, &[0; 126])], 1002, "control frame over 125 bytes"),
        (vec![client_frame(0x88, &[3])], 1002, "close frame of one byte"),
        (vec![client_frame(0x88, &1005_u16.to_be_bytes())], 1002, "invalid close code"),
        (vec![client_frame(0x88, &[3, 232, 0xFF])], 1007, "text is not UTF-8"),
        (vec![client_frame(0x81, &[0xFF])], 1007, "text is not UTF-8"),
        (vec![client_frame(0x01, b"a"), client_frame(0x80, &[0xC3])], 1007, "text is not UTF-8"),
        (vec![client_frame(0x81, &[b'a'; 1_001])], 1009, "message too large"),
        (vec![client_frame(0x01, &[b'a'; 600]), client_frame(0x80, &[b'a'; 401])], 1009, "message too large"),
        (vec![huge], 1009, "message too large"),
        (vec![negative], 1002, "length is not in its shortest form"),
        (vec![long_form], 1002, "length is not in its shortest form"),
    ] {
        assert_eq!(error_of(&frames), (code, reason));
    }
    let many = [vec![client_frame(0x01, b"")], vec![client_frame(0x00, b""); 4]].concat();
    assert_eq!(error_of(&many), (1009, "too many fragments"));
}

#[test]
fn the_limit_itself_is_allowed_and_an_announced_length_reserves_nothing() {
    let (log, error) = run(&mut client_frame(0x82, &[7; 1_000]), LIMITS);
    assert_eq!((log.len(), error), (1, None));
    let mut decoder = Decoder::default();
    let mut head = client_frame(0x82, &[7; 1_000])[..8].to_vec();
    assert_eq!(decoder.decode(&mut head, LIMITS), Ok(Decoded::Incomplete { need: 1_008 }));
    assert!(!decoder.holds_fragments());
}

#[test]
fn a_finished_fragmented_message_is_given_back() {
    let mut decoder = Decoder::default();
    let mut bytes = [client_frame(0x01, b"a"), client_frame(0x80, b"b"), client_frame(0x81, b"c")].concat();
    let mut at = 0;
    for _ in 0..3 {
        match decoder.decode(&mut bytes[at..], LIMITS).unwrap() {
            Decoded::Fragment { consumed } | Decoded::Text { consumed, .. } => at += consumed,
            other => panic!("{other:?}"),
        }
    }
    assert!(!decoder.holds_fragments());
}

proptest! {
    /// Cutting the byte stream anywhere changes nothing: the decoder waits, and goes on where it was.
    #[test]
    fn cuts_do_not_matter(payloads in proptest::collection::vec(".{0,300}", 1..6), cuts in proptest::collection::vec(1_usize..40, 1..60)) {
        let whole: Vec<u8> = payloads.iter().flat_map(|text| client_frame(0x81, text.as_bytes())).collect();
        let limits = DecoderLimits { message_bytes_max: 10_000, fragments_max: 4 };
        let mut decoder = Decoder::default();
        let mut pending: Vec<u8> = Vec::new();
        let mut got = Vec::new();
        let mut rest = whole.as_slice();
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            pending.extend_from_slice(now);
            rest = later;
            loop {
                // What waits must stay as it came until its frame is whole.
                let before = pending.clone();
                match decoder.decode(&mut pending, limits).unwrap() {
                    Decoded::Text { consumed, text } => {
                        got.push(text.to_owned());
                        pending.drain(..consumed);
                    }
                    Decoded::Incomplete { need } => {
                        prop_assert!(need > before.len());
                        prop_assert_eq!(&pending, &before);
                        break;
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
        prop_assert_eq!(got, payloads);
    }

    /// Whatever bytes come, decoding ends, and never panics.
    #[test]
    fn any_bytes_end(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = run(&mut bytes, LIMITS);
    }
}
