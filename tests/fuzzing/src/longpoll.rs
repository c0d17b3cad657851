//! What clients that poll post, and the token they show.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use muster_protocol::phoenix::longpoll::{BodyForm, Posted, PostedMessages, Token, split_query};

/// Bytes of a message, at most: small, so that the fuzzer comes to the bound.
const MESSAGE_BYTES_MAX: usize = 256;

/// The first byte says which of them.
pub fn longpoll(data: &[u8]) {
    match data.split_first() {
        Some((b'q', query)) => tokens(&String::from_utf8_lossy(query)),
        Some((b'w', body)) => posted(BodyForm::Whole, body),
        Some((_, body)) => posted(BodyForm::Lines, body),
        None => {}
    }
}

/// What is read is within the bound, ends with the first error, and is the same when it is posted as it was read.
fn posted(form: BodyForm, body: &[u8]) {
    let mut messages = PostedMessages::new(form, body, MESSAGE_BYTES_MAX);
    let mut again = Vec::new();
    let mut read = Vec::new();
    let mut failed = false;
    for message in &mut messages {
        assert!(!failed, "after an error comes nothing more");
        match message {
            Ok(Posted::Text(text)) => {
                assert!(!text.is_empty() && text.len() <= MESSAGE_BYTES_MAX);
                assert!(form == BodyForm::Whole || !text.contains('\n') && text.starts_with(['[', '{']));
                again.extend_from_slice(text.as_bytes());
                read.push(Posted::Text(text));
            }
            Ok(Posted::Binary(bytes)) => {
                assert_eq!(form, BodyForm::Lines);
                assert!(bytes.len() <= MESSAGE_BYTES_MAX);
                again.extend_from_slice(BASE64.encode(&bytes).as_bytes());
                read.push(Posted::Binary(bytes));
            }
            Err(error) => {
                failed = true;
                assert!(!error.reason.is_empty());
                continue;
            }
        }
        again.extend_from_slice(if form == BodyForm::Lines { b"\r\n" } else { b"" });
    }
    assert!(messages.next().is_none());
    assert!(form == BodyForm::Lines || read.len() <= 1, "a whole body is one message");
    let reread: Result<Vec<_>, _> = PostedMessages::new(form, &again, MESSAGE_BYTES_MAX).collect();
    assert_eq!(reread.as_deref(), Ok(read.as_slice()));
}

/// A token has one spelling, is found wherever it stands, and the rest of the query stays.
fn tokens(query: &str) {
    let (found, rest) = split_query(query);
    let Some(token) = found else {
        assert_eq!(rest, query);
        return;
    };
    let shown = format!("token={}", token.reveal());
    assert!(query.split('&').any(|segment| segment == shown), "another spelling of a token");
    assert!(Token::presented(&token.reveal()).is_some_and(|same| same.matches(&token)));
    assert_eq!(rest.split('&').count().max(1), query.split('&').count().saturating_sub(1).max(1));
}
