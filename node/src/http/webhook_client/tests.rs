//! What may be called, and how it is.

use muster_protocol::account::Owner;
use muster_protocol::ids::{AgentId, DeliveryId, WebhookId};
use muster_protocol::json::Json;
use muster_protocol::webhook::Events;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

fn client(allow: &[&str]) -> WebhookClient {
    let allow_private = allow.iter().map(|network| (*network).to_owned()).collect();
    let settings = WebhookSettings { allow_private, timeout_ms: 2_000, ..WebhookSettings::default() };
    WebhookClient::trusting(&settings, RootCertStore::empty()).unwrap()
}

fn webhook(url: &str) -> Webhook {
    Webhook {
        id: WebhookId::from_bytes([1; 16]),
        owner: Owner::Agent(AgentId::from_bytes([2; 16])),
        url: url.to_owned(),
        secret: "whsec_test".into(),
        events: Events::of(&[]).unwrap(),
        created_at: Timestamp::from_unix_ms(0),
        failing_since: None,
        disabled_at: None,
    }
}

fn delivery() -> Delivery {
    Delivery {
        id: DeliveryId::from_bytes([3; 16]),
        event: "task.created".into(),
        data: Json::of(&serde_json::json!({ "n": 1 })),
        created_at: Timestamp::from_unix_ms(0),
        attempts: 0,
    }
}

/// A receiver that answers one request with this; gives its port, and what it read.
async fn receiver(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = Vec::new();
        while !String::from_utf8_lossy(&read).contains("\"data\":{\"n\":1}}") {
            let mut part = [0; 4_096];
            let count = stream.read(&mut part).await.unwrap();
            assert!(count > 0, "a whole request");
            read.extend_from_slice(&part[..count]);
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(read).unwrap()
    });
    (port, heard)
}

/// R144
#[tokio::test]
async fn what_is_not_public_is_refused_however_it_is_written() {
    for url in [
        "http://127.0.0.1/",
        "https://127.0.0.1:8443/",
        "http://localhost/",
        "http://localhost./",
        "http://LOCALHOST:9999/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://0.0.0.0/",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://172.20.0.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://100.64.0.1/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[fe80::1]/",
        "http://[fd00::1]/",
        "http://224.0.0.1/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "//example.com/",
        "example.com",
        "/path",
        "",
        "http://",
        "http://user:password@example.com/",
        "http://example.com@127.0.0.1/",
        "http://example.com:/",
        "http://example.com:99999/",
        "http://1.1.1.1:25/",
        "http://1.1.1.1:6379/",
        "http://exa mple.com/",
    ] {
        assert!(client(&[]).check(url).await.is_err(), "{url}");
        assert!(
            client(&[]).call(&webhook(url), &delivery(), Timestamp::from_unix_ms(0)).await.is_err(),
            "{url}"
        );
    }
    for url in ["https://1.1.1.1/hook?x=1", "http://1.1.1.1:8080", "https://[2606:4700::1111]/"] {
        assert_eq!(client(&[]).check(url).await, Ok(()), "{url}");
    }
    let loopback = client(&["127.0.0.0/8", "::1/128"]);
    assert_eq!(loopback.check("http://127.0.0.1:8080/").await, Ok(()));
    assert!(loopback.check("http://10.0.0.1/").await.is_err());
}

/// R144: the name is looked at again when it is called: one that was public when the webhook was made, and leads here now.
#[tokio::test]
async fn a_name_that_leads_here_is_not_called() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://localhost:{}/", listener.local_addr().unwrap().port());
    let refused = client(&[]).call(&webhook(&url), &delivery(), Timestamp::from_unix_ms(0)).await;
    assert_eq!(refused, Err(REFUSED.to_owned()));
    let nobody_came = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
    assert!(nobody_came.is_err());
}

/// R144
#[tokio::test]
async fn a_delivery_is_one_signed_request() {
    let (port, heard) = receiver("HTTP/1.1 204 No Content\r\n\r\n").await;
    let url = format!("http://127.0.0.1:{port}/hook?x=1");
    let at = Timestamp::from_unix_ms(1_700_000_000_999);
    assert_eq!(client(&["127.0.0.1"]).call(&webhook(&url), &delivery(), at).await, Ok(204));
    let heard = heard.await.unwrap();
    let (head, body) = heard.split_once("\r\n\r\n").unwrap();
    let head = head.to_lowercase();
    assert!(head.starts_with("post /hook?x=1 http/1.1\r\n"), "{head}");
    assert_eq!(body, delivery().body().as_str());
    let signed = signature("whsec_test", body.as_bytes());
    for header in [
        format!("host: 127.0.0.1:{port}"),
        "x-webhook-id: 03030303-0303-0303-0303-030303030303".to_owned(),
        "x-webhook-timestamp: 1700000000".to_owned(),
        "x-webhook-event: task.created".to_owned(),
        format!("x-webhook-signature: {}", signed.to_lowercase()),
    ] {
        assert!(head.contains(&header), "{header} in {head}");
    }
    // RFC 4231, test case 2.
    let known = "W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM=";
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"Jefe"), b"what do ya want for nothing?");
    assert_eq!(
        (STANDARD.encode(mac.as_ref()), signature("Jefe", b"what do ya want for nothing?")),
        (known.to_owned(), known.to_owned())
    );
}

/// R144
#[tokio::test]
async fn redirects_are_answers_and_long_answers_are_cut() {
    let (port, heard) =
        receiver("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n").await;
    let url = format!("http://127.0.0.1:{port}/");
    let client = client(&["127.0.0.1"]);
    let now = Timestamp::from_unix_ms(0);
    assert_eq!(client.call(&webhook(&url), &delivery(), now).await, Ok(302));
    heard.await.unwrap();
    let long: &'static str = Box::leak(
        format!("HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\n{}", "x".repeat(8_192)).into_boxed_str(),
    );
    let (port, _heard) = receiver(long).await;
    assert_eq!(client.call(&webhook(&format!("http://127.0.0.1:{port}/")), &delivery(), now).await, Ok(200));
    // Nobody there; and somebody who says nothing.
    assert!(client.call(&webhook("http://127.0.0.1:2/"), &delivery(), now).await.is_err());
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://127.0.0.1:{}/", silent.local_addr().unwrap().port());
    assert_eq!(client.call(&webhook(&url), &delivery(), now).await, Err("no answer in time".to_owned()));
}
